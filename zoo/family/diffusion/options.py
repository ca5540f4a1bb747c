"""What text-to-image pipelines take."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from zoo.family.options import GenerateOptions


class TextToImageOptions(GenerateOptions):
    """What a pipeline takes; further ones are of its own call, which knows their names."""

    model_config = ConfigDict(extra="allow")
    makes: ClassVar[str] = "images"

    prompt: Any = Field(None, description='The text to draw, "" for an image of anything; default: stdin')
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, gt=-1e6, lt=1e6)
    count: int = Field(1, ge=1, le=1000, description="How many images, each drawn with the next seed")
    seed: int = Field(0, ge=0, lt=2**63)
