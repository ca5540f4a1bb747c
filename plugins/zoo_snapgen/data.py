"""Real handwritten digits with captions: scikit-learn's `load_digits`, described from what is in the image.

The 1,797 images of the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin and Kaynak 1998, CC BY 4.0), 8x8
pixels of 17 grey levels, come with scikit-learn. Each is enlarged to 32x32, white on black, and captioned "a thin narrow seven leaning
right": ink, width and slant are measured in the image, and each is named only where it is out of the ordinary, so that
"a seven" is an average one.

The split is stratified and stable: of the images of one digit, in the order of the file, every fifth is in "test".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Sample

SIZE, MARGIN = 32, 2
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# About a fifth of the images lie below, a fifth above.
THIN, THICK = 0.275, 0.335  # mean ink, of 1
NARROW, WIDE = 1.12, 1.40  # standard deviation of the ink along x, in pixels of 8
LEFT, RIGHT = -0.17, 0.07  # columns the ink moves right with each row up
WORDS = ("a", "an", "thin", "thick", "narrow", "wide", *DIGITS, "leaning", "left", "right")


class DigitsCaptions:
    """Data source "digits-captions": splits "train" and "test"; fields text, image (32, 32), digit and the attributes."""

    splits = ("train", "test")

    def records(self, split: str) -> Iterator[Sample]:
        """Yield the images of a split in the order of the file; `where` is the position in it."""
        seen = dict.fromkeys(range(10), 0)
        for place, (image, digit) in enumerate(zip(*_digits(), strict=True)):
            seen[int(digit)] += 1
            if (seen[int(digit)] % 5 == 0) == (split == "test"):
                about = describe(image)
                text = caption(int(digit), **about)
                fields = {"text": text, "image": enlarge(image), "digit": DIGITS[int(digit)], **about}
                yield Sample(fields, f"load_digits:{place}")


def describe(image: NDArray[np.float64]) -> dict[str, str]:
    """Name what is out of the ordinary in an (8, 8) image of ink in 0..1; "" where a thing is ordinary.

    Slant is the covariance of column and row over the variance of the row, of the ink's distribution.
    """
    ink = image.mean()
    weight = image / max(image.sum(), 1e-9)
    rows, columns = np.mgrid[0:8, 0:8]
    row, column = (weight * rows).sum(), (weight * columns).sum()
    spread = np.sqrt((weight * (columns - column) ** 2).sum())
    height = (weight * (rows - row) ** 2).sum()
    slant = -(weight * (rows - row) * (columns - column)).sum() / max(height, 1e-9)
    return {
        "ink": _name(ink, THIN, THICK, "thin", "thick"),
        "width": _name(spread, NARROW, WIDE, "narrow", "wide"),
        "slant": _name(slant, LEFT, RIGHT, "left", "right"),
    }


def caption(digit: int, *, ink: str = "", width: str = "", slant: str = "") -> str:
    """Write "a thin narrow seven leaning right"."""
    words = [word for word in (ink, width, DIGITS[digit], f"leaning {slant}" if slant else "") if word]
    return " ".join(["an" if words[0] == "eight" else "a", *words])


def enlarge(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Enlarge (8, 8) ink in 0..1 to (32, 32) bytes with a black margin, bicubically."""
    from PIL import Image

    side = SIZE - 2 * MARGIN
    big = Image.fromarray(image.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.pad(np.round(np.clip(np.asarray(big), 0, 1) * 255).astype(np.uint8), MARGIN)


def _name(value: float, low: float, high: float, small: str, large: str) -> str:
    return small if value < low else large if value > high else ""


@cache
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, digits = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8) / 16, digits
