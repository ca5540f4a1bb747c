"""What language models take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from zoo.family.options import GenerateOptions, Stream

MOST = 1000  # texts of one prompt


class Sampling(GenerateOptions):
    """How a text is continued, and where it ends."""

    prompt: Any = None
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    stop: tuple[str, ...] = ()
    count: int = Field(1, ge=1, le=MOST, description="How many texts, each drawn with the next seed")

    @field_validator("stop", mode="before")
    @classmethod
    def _texts(cls, stop: Any) -> Any:
        texts = [stop] if isinstance(stop, str) else stop
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError("a stop string is some text; an empty one would stop before the first character")
        return tuple(texts)

    @model_validator(mode="after")
    def _drawn(self) -> Sampling:
        if self.count > 1 and not self.temperature:
            raise ValueError(
                f"count = {self.count}: at temperature 0 all texts are the likeliest one; set a temperature, such as 1"
            )
        return self


SAMPLING = tuple(name for name in Sampling.model_fields if name != "prompt")


class ContinuationOptions(Sampling):
    """What models take that continue a text, and nothing else."""

    stream: Stream = False


class TranslationOptions(ContinuationOptions):
    """What models of an encoder and a decoder take."""

    task: ClassVar[str] = "seq2seq"


class MaskedOptions(GenerateOptions):
    """What models take that fill in words."""

    task: ClassVar[str] = "masked-lm"
    prompt: Any = Field(None, description="A text with masks to fill; default: stdin")
    count: int = Field(5, ge=1, description="How many words for each mask")
    stream: Stream = False


class EmbeddingOptions(GenerateOptions):
    """What sentence encoders take."""

    task: ClassVar[str] = "embedding"
    makes: ClassVar[str] = "vectors"
    prompt: Any = Field(None, description="A sentence; default: stdin, a sentence a line")
    stream: Stream = False


class TextOptions(Sampling):
    """What a language model takes: of these, what its task knows. The code that writes the prompt checks what it is made of."""

    messages: Any = None
    suffix: Any = None
    files: Any = None
    repo: Any = None
    path: Any = None
    stream: Stream = False

    @classmethod
    def of(cls, task: str) -> type[GenerateOptions]:
        return OF_TASK.get(task, cls)


# Where a task takes only some.
OF_TASK: dict[str, type[GenerateOptions]] = {
    kind.task: kind for kind in (TranslationOptions, MaskedOptions, EmbeddingOptions)
}
