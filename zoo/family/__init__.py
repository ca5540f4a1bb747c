"""Families: how one architecture family is built, fed, run, and where its parts are.

`Family` is what every modality shares; one base class per modality holds what is common to it, so that a new
architecture of a known modality is little more than `config`, `build` and `anatomy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.family.base import Family as Family
    from zoo.family.base import place as place
    from zoo.family.text import TextFamily as TextFamily
    from zoo.family.text_to_image import TextToImageFamily as TextToImageFamily
    from zoo.family.tokens import start_token as start_token
    from zoo.family.vision import VisionFamily as VisionFamily
    from zoo.family.vision_language import VisionLanguageFamily as VisionLanguageFamily
    from zoo.family.vision_language import asked as asked
    from zoo.tensors.batch import Batch as Batch
    from zoo.tensors.batch import Rows as Rows

HOMES = {
    "zoo.family.base": ("Family", "place"),
    "zoo.family.text": ("TextFamily",),
    "zoo.family.text_to_image": ("TextToImageFamily",),
    "zoo.family.tokens": ("start_token",),
    "zoo.family.vision": ("VisionFamily",),
    "zoo.family.vision_language": ("VisionLanguageFamily", "asked"),
    "zoo.tensors.batch": ("Batch", "Rows"),
}
__getattr__, __dir__ = face(__name__, HOMES)
