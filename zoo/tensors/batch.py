"""What runs through a model at once: a batch of tensors, and the rows of it that losses compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


Batch = dict[str, "torch.Tensor"]


def generators(seed: int, records: Iterable[int]) -> list[torch.Generator]:
    """One source of chance for each record, from a seed and the record's number alone, whatever it is batched with."""
    import torch

    return [torch.Generator().manual_seed((seed * 1_000_003 + record) % 2**63) for record in records]


def unpadded(batch: Batch) -> torch.Tensor | None:
    """Which places (B, T) of a batch are no padding; None where none is."""
    mask_BT = batch.get("attention_mask")
    return None if mask_BT is None or bool(mask_BT.all()) else mask_BT.bool()


def without_padding(output: torch.Tensor, kept_BT: torch.Tensor | None) -> torch.Tensor:
    """The tokens (1, N, D) of an output (B, T, D) that are no padding; one that does not lie as the tokens do stays whole."""
    whole = kept_BT is None or output.dim() < 3 or output.shape[:2] != kept_BT.shape
    return output if whole else output[kept_BT][None]


def written(output: Any) -> torch.Tensor:
    """What a block writes into the residual: its output, or the first of several, whatever holds them (GPT-1 a list)."""
    import torch

    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


@dataclass(frozen=True)
class Rows:
    """The places of a batch that losses compare, one row each: labelled tokens, visual tokens, or whole images.

    Legend: N rows, D width of the hidden state, V width of what the head makes of it.
    """

    hidden: torch.Tensor  # (N, D)
    head: Callable[[torch.Tensor], torch.Tensor]  # (n, D) -> (n, V)
    sample: torch.Tensor  # (N,) int64: which sample of the batch a row belongs to
    target: torch.Tensor | None = None  # (N,) int64 labels or (N, V) values; None where only a teacher knows
    time: torch.Tensor | None = None  # (N,) the time in [0, 1] of a flow-matching row

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, chosen: slice | torch.Tensor) -> Rows:
        picked: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[chosen]
            for name in ("hidden", "sample", "target", "time")
        }
        return replace(self, **picked)
