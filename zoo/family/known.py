"""The options that zoo itself declares, for families that name those they take and have no class of their own."""

from __future__ import annotations

from copy import copy
from typing import Any

from pydantic import create_model

from zoo.family.diffusion.options import TextToImageOptions
from zoo.family.options import GenerateOptions
from zoo.family.text.options import TextOptions
from zoo.family.vision.options import VisionOptions


def _fields() -> dict[str, Any]:
    """Every field with its type and range; what it is by default is the family's to say, and what it does too."""
    fields: dict[str, Any] = {}
    for kind in (TextOptions, VisionOptions, TextToImageOptions):
        for name, field in kind.model_fields.items():
            bare = copy(field)
            bare.default, bare.description = None, None
            fields[name] = (field.annotation, bare)
    return fields


KnownOptions: type[GenerateOptions] = create_model("KnownOptions", __base__=GenerateOptions, **_fields())
