"""What image classifiers take, and models that answer questions about images."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from zoo.family.options import GenerateOptions, Stream
from zoo.family.text.options import Sampling


class VisionOptions(GenerateOptions):
    """What an image classifier takes."""

    images: Any = Field((), description="An image to classify; may be given several times")
    count: int = Field(5, ge=1, description="How many classes, the likeliest first")
    stream: Stream = False

    @classmethod
    def of(cls, task: str) -> type[GenerateOptions]:
        return ImageEmbeddingOptions if task == ImageEmbeddingOptions.task else cls


class ImageEmbeddingOptions(GenerateOptions):
    """What models take that read images and have no classes."""

    task: ClassVar[str] = "embedding"
    makes: ClassVar[str] = "vectors"
    images: Any = Field((), description="An image; may be given several times")
    stream: Stream = False


class VisionLanguageOptions(Sampling):
    """What a model takes that answers questions about images."""

    prompt: Any = Field(None, description="The question, with <image> where an image stands; default: stdin")
    images: Any = ()
    stream: Stream = False
