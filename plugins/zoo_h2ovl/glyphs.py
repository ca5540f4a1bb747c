"""Short strings drawn with real fonts: what a picture shows follows from its split and index alone.

The fonts come from PyPI packages, each of which ships the font files with their licence; nothing is fetched. Characters
that many fonts draw alike (I and 1, O and 0) are left out, as on number plates.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CHARACTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
LONGEST = 6
BUCKETS = 10  # one tenth of all strings is held out
ILLEGIBLE = ("Thin", "ExtraLight", "Variable")  # too thin at 14 pixels; all weights in one file

# name -> (PyPI package, licence of the font)
TRAINING_FONTS = {
    "Roboto": ("font-roboto", "Apache-2.0"),
    "Source Sans Pro": ("font-source-sans-pro", "OFL-1.1"),
    "Source Serif Pro": ("font-source-serif-pro", "OFL-1.1"),
    "Hanken Grotesk": ("font-hanken-grotesk", "OFL-1.1"),
    "Fredoka One": ("font-fredoka-one", "OFL-1.1"),
    "Intuitive": ("font-intuitive", "OFL-1.1"),
    "Red Hat Display": ("font-rhd", "OFL-1.1"),
}
HELD_OUT_FONTS = {
    "Lato": ("font-lato", "OFL-1.1"),
    "Caladea": ("font-caladea", "Apache-2.0"),
    "Manrope": ("font-manrope", "OFL-1.1"),
}


def held_out(text: str) -> bool:
    """Whether a string is kept for testing; single characters never are, since there is no new one."""
    return len(text) > 1 and int(hashlib.sha256(text.encode()).hexdigest(), 16) % BUCKETS == 0


def draw_record(split: str, index: int) -> tuple[np.ndarray[Any, Any], str, str]:
    """Return the picture (H, W) uint8, its text and the name of its font."""
    rng = random.Random(f"glyphs:{split}:{index}")
    fonts = HELD_OUT_FONTS if split == "fonts" else TRAINING_FONTS
    name = rng.choice(sorted(fonts))
    text = rng.choice(CHARACTERS) if split == "characters" else random_text(rng, new=split != "train")
    ink = draw_text(text, rng.choice(font_files(fonts[name][0])), rng)
    return finish(ink, rng), text, name


def random_text(rng: random.Random, *, new: bool) -> str:
    """One to six characters; two to six that are not in the training split where `new`."""
    while True:
        text = "".join(rng.choices(CHARACTERS, k=rng.randint(2 if new else 1, LONGEST)))
        if held_out(text) == new:
            return text


def draw_text(text: str, path: Path, rng: random.Random) -> Image:
    """Draw in white on black, a little turned, with some room around it."""
    from PIL import Image, ImageDraw

    font = _font(path, rng.randint(16, 30))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    room = [rng.randint(2, 7) for _ in range(4)]
    image = Image.new("L", (right - left + room[0] + room[2], bottom - top + room[1] + room[3]))
    ImageDraw.Draw(image).text((room[0] - left, room[1] - top), text, font=font, fill=255)
    return image.rotate(rng.gauss(0, 2.0), resample=Image.Resampling.BICUBIC, expand=True)


def finish(ink: Image, rng: random.Random) -> np.ndarray[Any, Any]:
    """Lay white ink on paper of some brightness, dark on bright or the reverse, and add noise: (H, W) uint8."""
    import numpy as np

    paper, pen = rng.uniform(160, 255), rng.uniform(0, 90)
    if rng.random() < 0.25:
        paper, pen = pen, paper
    drawn_HW = np.asarray(ink, dtype=np.float32) / 255
    noise_HW = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(0, 12), drawn_HW.shape)
    return np.clip(paper + (pen - paper) * drawn_HW + noise_HW, 0, 255).astype(np.uint8)


@cache
def font_files(package: str) -> tuple[Path, ...]:
    """Return the font files of an installed package, TrueType where it has both kinds.

    Raises:
        DataError: the package is not installed, or holds no font.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in (".ttf", ".otf"))
    files = [file for file in files if not any(word in file.stem for word in ILLEGIBLE)]
    found = [file for file in files if file.suffix == ".ttf"] or files
    if not found:
        raise DataError(f"The pictures of text need the fonts of {package}: pip install 'zoo-compress[images]'.")
    return tuple(found)


@cache
def _font(path: Path, size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
