"""Sentences: each record's text, or its two, as a window of its own."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model

TOGETHER = 1024  # texts tokenised at once


class Sentences(Sequence[Batch]):
    """Texts as windows {"input_ids" (T,), "attention_mask" (T,)}, each with the special tokens of its tokenizer.

    The model's own prompt stands before each; where its tokens do not count in the vector, a "pooling_mask" says so. What
    is longer than `length` tokens, the model or its tokenizer takes is cut there, and a warning says how many were.
    """

    def __init__(
        self, family: TextFamily, model: Model, texts: Sequence[str], origins: Sequence[str], length: int
    ) -> None:
        from zoo.errors import DataError

        self.origins = origins
        longest = min(length, longest_text(family, model))
        prompt, counts = family.sentence_prompt(model)
        tokenizer = family.tokenizer(model)
        self.given = 0 if counts or not prompt else _prompt_length(tokenizer, prompt)
        self.ids: list[array[int]] = []
        for start in range(0, len(texts), TOGETHER):
            some = [prompt + text for text in texts[start : start + TOGETHER]]
            for ids in tokenizer(some, truncation=True, max_length=longest, verbose=False)["input_ids"]:
                self.ids.append(array("i", ids))
        for ids, origin in zip(self.ids, origins, strict=True):
            if len(ids) <= self.given:
                raise DataError(f"{origin}: the text holds no token that {model.spec.name} knows.")
            family.require_known(model, ids)
        _warn_of_cuts(
            tokenizer,
            [prompt + text for text, ids in zip(texts, self.ids, strict=True) if len(ids) == longest],
            longest,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        import torch

        ids_T = torch.tensor(self.ids[index], dtype=torch.int64)
        window = {"input_ids": ids_T, "attention_mask": torch.ones_like(ids_T)}
        if self.given:
            window["pooling_mask"] = (torch.arange(len(ids_T)) >= self.given).long()
        return window

    def where(self, index: int) -> str:
        return self.origins[index]

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def sentences_of(family: TextFamily, model: Model, data: Dataset, *, length: int) -> Sentences:
    """The sentences of all records, in their order."""
    pairs = [(text, sample.where) for sample in data for text in sample.sentences]
    return Sentences(family, model, [text for text, _ in pairs], [where for _, where in pairs], length)


def padded(windows: Sequence[Batch], pad: int) -> Batch:
    """Join windows of any lengths, filled up on the right with a token that the masks leave out."""
    from torch.nn.utils.rnn import pad_sequence

    fill = {"input_ids": pad}
    return {
        name: pad_sequence([window[name] for window in windows], batch_first=True, padding_value=fill.get(name, 0))
        for name in windows[0]
    }


def longest_text(family: TextFamily, model: Model) -> int:
    """The most tokens of a sentence, its special ones among them: what the model takes, and no more than its tokenizer says."""
    return min(family.context_length(model), int(getattr(family.tokenizer(model), "model_max_length", 2**62)))


def _prompt_length(tokenizer: Any, prompt: str) -> int:
    """The tokens of a prompt with the special ones before it."""
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return len(ids) - 1 if ids and ids[-1] in tokenizer.all_special_ids else len(ids)


def _warn_of_cuts(tokenizer: Any, filled: list[str], longest: int) -> None:
    """Say how many of the texts that fill all places have more tokens than that."""
    from zoo.errors import ZooWarning

    lengths = [len(ids) for ids in tokenizer(filled, verbose=False)["input_ids"]] if filled else []
    cut = [text for text, tokens in zip(filled, lengths, strict=True) if tokens > longest]
    if cut:
        some = "1 sentence is" if len(cut) == 1 else f"{len(cut):,} sentences are"
        lines = any("\n" in text.strip() for text in cut)
        hint = " Of a text of several lines each may be a record of its own, as in a .jsonl file." if lines else ""
        warnings.warn(f"{some} longer than {longest} tokens, and cut there.{hint}", ZooWarning, stacklevel=2)
