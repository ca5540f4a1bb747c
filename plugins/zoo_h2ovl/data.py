"""Pictures to read, each with a question and its answer: real handwritten digits, and strings in real fonts.

Records have `image` (H, W) uint8, `prompt`, `text` (the answer), `kind` and `font`. The digits are those of scikit-learn
(UCI, Alpaydin and Kaynak 1998, CC BY 4.0; 8 x 8 pixels), whose test split is chosen by a hash of the pixels.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from zoo.data.dataset import Sample
from zoo_h2ovl import glyphs

if TYPE_CHECKING:
    import numpy as np

DIGIT_PROMPT = "What digit is this?"
TEXT_PROMPT = "What does it say?"
SIDE = 32  # pixels of an enlarged digit
BUCKETS = 5  # one fifth of the digits is held out
COUNTS = {"train": 40_000, "characters": 12_000, "test": 500, "fonts": 600}
EVERY = 5  # in "reading", one record in five is a digit


class Records(Sequence[Sample]):
    """Records made when they are asked for, so that a slice of many costs what it holds."""

    def __init__(self, size: int, make: Callable[[int], Sample]) -> None:
        self.size, self.make = size, make

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        places = range(self.size)[index]
        return self.make(places) if isinstance(places, int) else [self.make(place) for place in places]


class Digits:
    """Data source "digits-vqa": splits "train" and "test"."""

    splits = ("train", "test")

    def records(self, split: str) -> Records:
        return Records(len(digits(split)), lambda i: _digit(split, i))


class Glyphs:
    """Data source "glyphs": "train", "test" (strings not in train), "fonts" (such strings in fonts not in train)."""

    splits = ("train", "test", "fonts")

    def records(self, split: str) -> Records:
        return Records(COUNTS[split], lambda i: _glyph(split, i))


class Reading:
    """Data source "reading": both mixed; "characters" is training data too, a single character each.

    Training digits come again and again, turned, moved and resized each time.
    """

    splits = ("train", "characters", "test")

    def records(self, split: str) -> Records:
        if split != "test":
            return Records(COUNTS[split], lambda i: _glyph(split, i) if i % EVERY else _varied(i // EVERY))
        parts = [Digits().records("test"), Glyphs().records("test"), Glyphs().records("fonts")]
        places = [(part, i) for part in parts for i in range(len(part))]
        return Records(len(places), lambda i: places[i][0][places[i][1]])


@cache
def digits(split: str) -> tuple[tuple[np.ndarray[Any, Any], int], ...]:
    """The digits of a split, in scikit-learn's order: (8, 8) uint8 with values 0 to 16, and which digit it is."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    images = found.images.astype("uint8")
    test = [int(hashlib.sha256(image.tobytes()).hexdigest(), 16) % BUCKETS == 0 for image in images]
    return tuple(
        (image, int(digit))
        for image, digit, held in zip(images, found.target, test, strict=True)
        if held == (split == "test")
    )


def enlarged(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Enlarge (8, 8) with values 0 to 16 to (32, 32) with values 0 to 255, ink bright as in the original."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray((image * 15.9).astype("uint8")).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _varied(turn: int) -> Sample:
    """A training digit seen another way; `turn` counts through all digits, then again."""
    import numpy as np
    from PIL import Image

    known = digits("train")
    image, digit = known[turn * 7919 % len(known)]  # a stride that meets every digit, of all classes in turn
    rng = random.Random(f"reading:digit:{turn}")
    side, shift = SIDE / rng.uniform(0.85, 1.2), (rng.randint(-3, 3), rng.randint(-3, 3))
    turned = Image.fromarray(enlarged(image)).rotate(rng.gauss(0, 6), Image.Resampling.BICUBIC, translate=shift)
    edge = (SIDE - side) / 2  # negative where more than the picture is seen: black, like its own background
    seen = turned.transform(
        (SIDE, SIDE), Image.Transform.EXTENT, (edge, edge, SIDE - edge, SIDE - edge), Image.Resampling.BICUBIC
    )
    return _handwritten(np.asarray(seen), digit, f"reading:digit:{turn}")


def _digit(split: str, index: int) -> Sample:
    image, digit = digits(split)[index]
    return _handwritten(enlarged(image), digit, f"digits-vqa:{split}:{index}")


def _handwritten(image: np.ndarray[Any, Any], digit: int, where: str) -> Sample:
    return Sample(
        {"image": image, "prompt": DIGIT_PROMPT, "text": str(digit), "kind": "digit", "font": "handwriting"}, where
    )


def _glyph(split: str, index: int) -> Sample:
    image, text, font = glyphs.draw_record(split, index)
    kind = "new font" if split == "fonts" else "glyph"
    return Sample(
        {"image": image, "prompt": TEXT_PROMPT, "text": text, "kind": kind, "font": font}, f"glyphs:{split}:{index}"
    )
