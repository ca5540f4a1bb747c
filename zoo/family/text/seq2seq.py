"""Models of an encoder and a decoder: the first reads a text, the second writes another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import window_origin
from zoo.family.text.task import WritingTask, text_family
from zoo.family.text.tokens import start_token
from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class Seq2Seq(WritingTask):
    """The encoder reads the first half of a text, and the second is predicted: prefix language modelling (T5, 1910.10683, section 3.2.1)."""

    name: ClassVar[str] = "seq2seq"
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "decoder_input_ids")
    takes_any_prompt: ClassVar[bool] = False  # it asks for what the model was trained to do with one
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    mapping: ClassVar[str] = "SEQ_TO_SEQ_CAUSAL_LM"
    endings: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration",)

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        return Halves(self, super().windows(model, data, length=length), start_token(model))

    def lead(self, model: Model) -> list[Any]:
        return [start_token(model)]

    def parted(self, ids: Any) -> tuple[Any, Any]:
        half = len(ids) // 2
        return ids[:half], ids[half:] if half else ids[:0]  # of one token alone, none

    def prompt_ids(self, model: Model, prompt: str) -> list[int]:
        """Tokenise a prompt with the special tokens that the tokenizer sets before and after it."""
        family = text_family(model)
        whole: list[int] = family.tokenizer(model)(prompt, verbose=False)["input_ids"]
        return whole if family.tokens(model, prompt)[0] else []


class Halves(Sequence[Batch]):
    """Windows for a seq2seq model: the encoder reads the first half, the decoder is to write the second."""

    def __init__(self, task: Seq2Seq, windows: Sequence[Batch], start: int) -> None:
        self.task, self.windows, self.start = task, windows, start

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Any) -> Any:
        import torch

        read, write = self.task.parted(self.windows[index]["input_ids"])
        return {
            "input_ids": read,
            "decoder_input_ids": torch.cat([write.new_tensor([self.start]), write[:-1]]),
            "labels": write,
        }

    def where(self, index: int) -> str:
        return window_origin(self.windows, index)

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))
