"""Language models whose tokens are bytes in slots: read and written a whole token at a time, all its bytes at once.

Legend: B batch, T tokens, S slots.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.options import GenerateOptions
from zoo.family.text.options import ContinuationOptions
from zoo.family.text.tokens import require_text
from zoo.family.text.windows import TokenWindows
from zoo.tensors.batch import Batch
from zoo_slm.byte_tokenizer import END, ByteTokenizer
from zoo_slm.language import TransformersText

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class ByteText(TransformersText):
    """Text models that take `input_ids` (B, T, S) and return `logits` (B, T, S, 258).

    What is saved beside the weights is the BPE tokenizer that cuts the text; the number of slots is in the config.
    """

    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    Options: ClassVar[type[GenerateOptions] | None] = ContinuationOptions

    def tokenizer(self, model: Model) -> ByteTokenizer:
        return ByteTokenizer(super().tokenizer(model), slots=slots(model))

    def tokens(self, model: Model, text: str) -> tuple[list[Any], list[tuple[int, int]]]:
        found = self.tokenizer(model)(text, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def inputs(self, model: Model, prompt: Any) -> tuple[list[Any], Batch]:
        require_text(prompt)
        return self.tokens(model, prompt)[0], {}

    def ends(self, model: Model) -> Container[Any]:
        return Ends()

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(seed)
        shape = (batch, min(size, self.context_length(model)), slots(model))
        return {"input_ids": torch.randint(0, 256, shape, generator=generator).to(model.device)}

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut the records into windows of `length` tokens; the labels (T, S) are the bytes of the next ones, padding included."""
        return Spelled(
            TokenWindows(TransformersText(), model, data, min(length, self.context_length(model))),
            self.tokenizer(model),
        )

    def comparable(self, student: Model, teacher: Model) -> str:
        mine, theirs = (model.spec.config.get("byte_context_window", 0) for model in (student, teacher))
        if mine == theirs:
            return ""
        return f"distill compares the bytes of tokens: {student.spec.name} has {mine} to a token, the teacher {teacher.spec.name} {theirs}."


def slots(model: Model) -> int:
    return int(model.spec.config["byte_context_window"])


class Ends(Container[Any]):
    """The tokens that begin with the end of text, whatever their other slots say."""

    def __contains__(self, token: Any) -> bool:
        return bool(token[0] == END)


class Spelled(Sequence[Batch]):
    """Windows of BPE pieces as the bytes of each."""

    def __init__(self, windows: TokenWindows, tokenizer: ByteTokenizer) -> None:
        self.windows, self.tokenizer = windows, tokenizer

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Any) -> Any:
        import torch

        window = self.windows[index]
        spelled = {name: torch.tensor(self.tokenizer.spell(ids.clamp_min(0).tolist())) for name, ids in window.items()}
        return {name: tensor.masked_fill(window[name][:, None] < 0, -1) for name, tensor in spelled.items()}

    def where(self, index: int) -> str:
        return self.windows.where(index)

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))
