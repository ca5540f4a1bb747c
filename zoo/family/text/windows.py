"""Token windows: records as one stream of tokens, cut for training."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.family.text.tokens import answer, begun
from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset, Sample
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model


TOGETHER = 2**18  # characters tokenised at once: a tokenizer holds some 150 bytes for each token until it is done


class TokenWindows(Sequence[Batch]):
    """Records as one stream of tokens cut into windows of T tokens, each token of it the label of at most one.

    Where the tokenizer begins a text with special tokens (`<bos>`), every record and every window begins with them, and
    they are no labels. Elsewhere an end-of-text token stands before each record. A record's prompt stands before its text,
    and its tokens are no labels (-1); an end-of-text token ends it, from which a model learns where an answer stops.
    """

    def __init__(self, family: TextFamily, model: Model, data: Dataset, length: int) -> None:
        import torch

        from zoo.errors import DataError

        prefix = family.special_tokens(model)[0]
        records = list(_records(family, model, data))
        self.stream = torch.cat([torch.tensor(ids, dtype=torch.int32) for ids, _ in records])
        if len(self.stream) < length + 1 or length <= len(prefix):
            raise DataError(
                f"{data.name!r} holds {len(self.stream)} tokens, fewer than one window of {length + 1}; lower `length`, or add text."
            )
        self.length, self.data = length, data
        self.lead = torch.tensor(prefix, dtype=torch.int64)
        self.starts = torch.tensor([0, *(len(ids) for ids, _ in records)]).cumsum(0)
        self.given = torch.zeros(len(self.stream), dtype=torch.bool)  # tokens that are not to be predicted
        for start, (_, given) in zip(self.starts.tolist(), records, strict=False):
            self.given[start + given.start : start + given.stop] = True
        self.spans = list(self._cut())

    def _cut(self) -> Iterator[range]:
        """The tokens of the stream that each window holds; its last one is a label alone, and the first of the next."""
        starts, place = set(self.starts.tolist()), 0
        while True:
            taken = self.length - (0 if place in starts else len(self.lead))
            if place + taken >= len(self.stream):
                return
            yield range(place, place + taken + 1)
            place += taken

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: Any) -> Any:
        import torch

        span = self.spans[index]
        piece = self.stream[span.start : span.stop].long()
        labels = piece.masked_fill(self.given[span.start : span.stop], -1)
        if len(piece) <= self.length:  # it begins within a record
            labels[0] = -1  # the window before has predicted it
            piece, labels = torch.cat([self.lead, piece]), torch.cat([torch.full_like(self.lead, -1), labels])
        return {"input_ids": piece[:-1], "labels": labels[1:]}

    def where(self, index: int) -> str:
        """The record in which a window begins, and that in which it ends."""
        span = self.spans[index]
        first, last = (self.data[int((self.starts <= token).sum()) - 1].where for token in (span.start, span.stop - 1))
        return first if first == last else f"{first} to {last}"

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def holds(family: TextFamily, model: Model, data: Dataset, count: int) -> bool:
    """Whether the records have so many tokens together; no more of them are tokenised than it takes to know."""
    left = count
    for ids, _ in _records(family, model, data):
        left -= len(ids)
        if left <= 0:
            return True
    return False


def _records(family: TextFamily, model: Model, data: Dataset) -> Iterator[tuple[array[int], range]]:
    """The tokens of each record with those around it, and which of them are not to be predicted."""
    from zoo.data.dataset import naming_record

    tokenizer = family.tokenizer(model)
    prefix, suffix = family.special_tokens(model)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    ends = [] if end is None else [int(end)]
    before = prefix or ends
    for samples in _groups(data):
        texts = tokenizer([sample.text for sample in samples], add_special_tokens=False, verbose=False)["input_ids"]
        for sample, ids in zip(samples, texts, strict=True):
            with naming_record(sample):
                prompt = family.tokens(model, sample.prompt)[0] if sample.prompt else []
                written = answer(family, model, sample.prompt, sample.text)[0] if sample.prompt else ids
                after = (suffix or (ends if prompt else [])) if prefix else []
                record = [*begun(before, [*prompt, *written]), *after]
                family.require_known(model, record)
            asked = max(len(before), len(record) - len(written) - len(after))
            yield array("i", record), range(0 if prefix else len(before), asked)


def _groups(data: Dataset) -> Iterator[list[Sample]]:
    """Records in groups of TOGETHER characters, and one that is longer alone."""
    group: list[Sample] = []
    size = 0
    for sample in data:
        if group and size + len(sample.text) > TOGETHER:
            yield group
            group, size = [], 0
        group.append(sample)
        size += len(sample.text)
    yield group
