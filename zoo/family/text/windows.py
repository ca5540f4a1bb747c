"""Token windows: records as one stream of tokens, cut for training; halves for an encoder and a decoder; hidden tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    import torch

    from zoo.data.dataset import Dataset, Sample
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model


TOGETHER = 2**18  # characters tokenised at once: a tokenizer holds some 150 bytes for each token until it is done


class TokenWindows(Sequence[Batch]):
    """Records as one token stream cut into windows; window i holds tokens [i*T, i*T+T] (one more, for the labels).

    A record's prompt stands before its text, and its tokens are no labels (-1).
    """

    def __init__(self, family: TextFamily, model: Model, data: Dataset, length: int) -> None:
        import torch

        from zoo.data.dataset import naming_record
        from zoo.errors import DataError

        tokenizer = family.tokenizer(model)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        lead = [] if end is None else [int(end)]
        pieces: list[torch.Tensor] = []
        prompts: dict[int, int] = {}  # tokens of the prompt, by the number of the record
        for samples in _groups(data):
            encoded = tokenizer([sample.text for sample in samples], add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            for sample, ids in zip(samples, encoded, strict=True):
                if sample.prompt:
                    prompt = tokenizer(sample.prompt, add_special_tokens=False, verbose=False)["input_ids"]
                    prompts[len(pieces)] = len(prompt)
                    ids = [*prompt, *ids]
                with naming_record(sample):
                    family.require_known(model, lead + ids)
                pieces.append(torch.tensor(lead + ids, dtype=torch.int32))
        self.stream = torch.cat(pieces)
        if len(self.stream) < length + 1:
            raise DataError(
                f"{data.name!r} holds {len(self.stream)} tokens, fewer than one window of {length + 1}; lower `length`, or add text."
            )
        self.length = length
        self.data, self.starts = data, torch.tensor([0, *map(len, pieces)]).cumsum(0)
        self.given = torch.zeros(len(self.stream) if prompts else 0, dtype=torch.bool)  # tokens of prompts
        for number, count in prompts.items():
            start = int(self.starts[number]) + len(lead)
            self.given[start : start + count] = True

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.length

    def __getitem__(self, index: Any) -> Any:
        span = slice(index * self.length, (index + 1) * self.length + 1)
        piece = self.stream[span].long()
        labels = piece.masked_fill(self.given[span], -1) if len(self.given) else piece
        return {"input_ids": piece[:-1], "labels": labels[1:]}

    def where(self, index: int) -> str:
        """The record in which a window begins, and that in which it ends."""
        ends = (index * self.length, (index + 1) * self.length)
        first, last = (self.data[int((self.starts <= token).sum()) - 1].where for token in ends)
        return first if first == last else f"{first} to {last}"

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


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


def require_no_prompts(model: Model, data: Dataset) -> None:
    """Refuse records with a prompt where a model's task has no place for one.

    Raises:
        DataError: names the first such record.
    """
    from zoo.errors import DataError

    if model.spec.task in ("seq2seq", "masked-lm") and (asked := next((s for s in data if s.prompt), None)):
        raise DataError(
            f"{asked.where}: the record has a 'prompt', which {model.spec.name}, a {model.spec.task} model, cannot be "
            "trained or measured on here; write it into the 'text', or leave it out."
        )


class Halves(Sequence[Batch]):
    """Windows for a seq2seq model: the encoder reads the first half, the decoder is to write the second."""

    def __init__(self, windows: TokenWindows, start: int) -> None:
        self.windows, self.start = windows, start

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Any) -> Any:
        import torch

        ids_T = self.windows[index]["input_ids"]
        read, write = ids_T[: len(ids_T) // 2], ids_T[len(ids_T) // 2 :]
        return {
            "input_ids": read,
            "decoder_input_ids": torch.cat([write.new_tensor([self.start]), write[:-1]]),
            "labels": write,
        }

    def where(self, index: int) -> str:
        return self.windows.where(index)

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def masked(model: Model, batch: Batch, mask: int, generator: torch.Generator) -> Batch:
    """Hide some tokens of each window: most become the mask, some another token, some stay (Devlin et al. 2019, 1810.04805, section 3.1).

    The share is the config's `mlm_probability`, 0.15 where it has none, and at least one of each window.
    """
    import torch

    ids_BT = batch["input_ids"]
    draw_BT, kind_BT = (torch.rand(ids_BT.shape, generator=generator).to(ids_BT.device) for _ in range(2))
    share = float(getattr(getattr(model.module, "config", None), "mlm_probability", 0.15))
    hidden_BT = draw_BT <= draw_BT.amin(1, keepdim=True).clamp_min(share)
    family: Any = model.family
    other_BT = torch.randint(0, family.vocabulary(model), ids_BT.shape, generator=generator).to(ids_BT.device)
    shown_BT = torch.where(kind_BT < 0.8, mask, torch.where(kind_BT < 0.9, other_BT, ids_BT))
    return {
        **batch,
        "input_ids": torch.where(hidden_BT, shown_BT, ids_BT),
        "labels": ids_BT.masked_fill(~hidden_BT, -1),
    }
