"""Which entries of a matrix stay, given a score of each: by count over the matrix or its rows, or N of every M inputs.

Zeros that are there stay zeros and count towards the sparsity: they are the first to go, whatever their score.
"""

from __future__ import annotations

import re
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator

from zoo.options import CompressorOptions


class PatternOptions(CompressorOptions):
    """Options of every stage that sets single weights to zero."""

    sparsity: float | None = Field(
        None, gt=0, lt=1, examples=[0.5], description="share of each matrix set to zero (unstructured)"
    )
    pattern: str = Field("unstructured", description='"unstructured", or "N:M": N of every M inputs of a row stay')
    target: str = Field("language", description="which projections are pruned")

    @field_validator("pattern")
    @classmethod
    def _readable(cls, value: str) -> str:
        count, size = groups_of(value) or (1, 2)
        if not 0 < count < size:
            raise ValueError(f"{value!r} keeps {count} of every {size}; write N:M with 0 < N < M, such as 2:4")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        groups = groups_of(self.pattern)
        if groups is None and self.sparsity is None:
            raise ValueError("sparsity is missing; write for example sparsity = 0.5, or a pattern such as '2:4'")
        if groups and self.sparsity is not None and abs(self.sparsity - (1 - groups[0] / groups[1])) > 1e-9:
            share = f"{1 - groups[0] / groups[1]:.0%}"
            raise ValueError(f"pattern {self.pattern} makes {share} of the weights zero; leave sparsity out")
        return self

    @property
    def groups(self) -> tuple[int, int] | None:
        """N and M of the pattern; None for "unstructured"."""
        return groups_of(self.pattern)

    @property
    def share(self) -> float:
        """The share of zeros asked for, whatever the pattern."""
        if self.groups:
            return 1 - self.groups[0] / self.groups[1]
        assert self.sparsity is not None
        return self.sparsity


def groups_of(pattern: str) -> tuple[int, int] | None:
    """Read "N:M" as (N, M); None for "unstructured"."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None:
        raise ValueError(f"{pattern!r} is not a pattern; write 'unstructured' or N:M, such as '2:4'")
    return int(match[1]), int(match[2])


def keep_largest(scores: torch.Tensor, zeros: int) -> torch.Tensor:
    """Mask all but the `zeros` smallest of all scores, whatever their shape; of equal scores the first go."""
    if zeros == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    scores_N = scores.flatten()
    threshold = scores_N.kthvalue(zeros).values
    drop_N = scores_N < threshold
    ties_N = (scores_N == threshold).nonzero().flatten()
    drop_N[ties_N[: zeros - int(drop_N.sum())]] = True
    return ~drop_N.reshape(scores.shape)


def keep_largest_of_rows(scores_OI: torch.Tensor, zeros: int) -> torch.Tensor:
    """Mask all but the `zeros` smallest scores of each row; of equal scores the first go."""
    order_OI = scores_OI.sort(dim=-1, stable=True).indices
    keep_OI = torch.ones_like(scores_OI, dtype=torch.bool)
    return keep_OI.scatter_(-1, order_OI[..., :zeros], False)


def keep_of_groups(scores_OI: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Mask the `count` largest of every `size` neighbours in a row; of equal scores the first stay."""
    scores_OGM = scores_OI.reshape(len(scores_OI), -1, size)
    order_OGM = scores_OGM.sort(dim=-1, descending=True, stable=True).indices
    keep_OGM = torch.zeros_like(scores_OGM, dtype=torch.bool)
    return keep_OGM.scatter_(-1, order_OGM[..., :count], True).flatten(-2)


def zeros_first(scores: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Scores (from 0) in which what is zero already comes before everything else."""
    return scores.masked_fill(zero, -1.0)
