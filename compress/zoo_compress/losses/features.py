"""Losses on the outputs of blocks.

Legend: B batch, T window, D width, L blocks.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from zoo.loss import FeatureLoss, FeatureOptions

EPSILON = 1e-8  # of a mean square


class HiddenState(FeatureLoss):
    """Mean squared error between mapped blocks' outputs, for each token relative to the mean square of the teacher's vector.

    Block l of the student (1-based) learns from block round(l * L_teacher / L_student); a linear map lifts the student's
    width where it differs (FitNets, Romero et al. 2015, 1412.6550, section 2.1; TinyBERT's uniform map, 1909.10351).
    """

    class Options(FeatureOptions):
        layers: Literal["uniform", "last"] = Field("uniform", description="which blocks are compared")

    def build(self, *, layers: tuple[int, int], widths: tuple[int, int], options: Options, seed: int) -> nn.Module:
        student, teacher = layers
        pairs = [(i, max(1, round((i + 1) * teacher / student)) - 1) for i in range(student)]
        return _MappedError(pairs[-1:] if options.layers == "last" else pairs, widths, seed)


class _MappedError(nn.Module):
    def __init__(self, pairs: list[tuple[int, int]], widths: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.lift: nn.Linear | None = None
        if widths[0] != widths[1]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.lift = nn.Linear(widths[0], widths[1], bias=False)

    def forward(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        terms = []
        for i, j in self.pairs:
            mine = self.lift(student[i]) if self.lift else student[i]
            theirs = teacher[j].to(mine.dtype)
            error = (mine - theirs).square().mean(-1) / theirs.square().mean(-1).clamp_min(EPSILON)
            terms.append(error.mean())
        return torch.stack(terms).mean()
