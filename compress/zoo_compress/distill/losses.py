"""Losses of training and distillation; what runs the models is in `objective.py`.

A row loss compares predictions row by row: a token's logits, an image's velocity. It is called on chunks of rows, so
that two tensors of logits never exist in full. A feature loss compares the outputs of blocks.

Legend: N rows, V outputs of a row (vocabulary, or values), B batch, T window, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from zoo import registry
from zoo.errors import RecipeError
from zoo.loss import FeatureLoss, FeatureOptions, LossOptions, RowLoss
from zoo.options import validated
from zoo.tensors.batch import Rows


class CrossEntropy(RowLoss):
    """Negative log likelihood of the label."""

    needs_teacher = False
    needs_target = True

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: LossOptions
    ) -> torch.Tensor:
        assert rows.target is not None
        return F.cross_entropy(student_NV.float(), rows.target, reduction="none")


class ForwardKL(RowLoss):
    """KL(teacher || student) at a temperature t, times t² (Hinton et al. 2015, 1503.02531, section 2)."""

    class Options(LossOptions):
        temperature: float = Field(1.0, gt=0, le=1000, description="divides both logits")

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Options
    ) -> torch.Tensor:
        assert teacher_NV is not None
        t = options.temperature
        student = F.log_softmax(student_NV.float() / t, dim=-1)
        teacher = F.log_softmax(teacher_NV.float() / t, dim=-1)
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1) * t**2


class HiddenState(FeatureLoss):
    """Mean squared error between mapped blocks' outputs, relative to the teacher's mean square.

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
            terms.append(F.mse_loss(mine, theirs) / theirs.pow(2).mean().clamp_min(1e-8))
        return torch.stack(terms).mean()


WeightedRow = tuple[str, RowLoss, Any]  # name, loss, options
WeightedFeature = tuple[str, FeatureLoss, Any]


def resolve(requests: Iterable[Mapping[str, Any]]) -> tuple[list[WeightedRow], list[WeightedFeature]]:
    """Resolve the losses a recipe names, row losses apart from feature losses.

    Raises:
        UnknownName, RecipeError: no such loss, or an option that does not fit it.
    """
    rows: list[WeightedRow] = []
    features: list[WeightedFeature] = []
    for request in requests:
        name = str(request.get("use", ""))
        found = registry.loss(name)
        own = validated(
            found.Options, {key: value for key, value in request.items() if key != "use"}, what=f"loss {name}"
        )
        if any(name == other for other, *_ in (*rows, *features)):
            raise RecipeError(f"loss {name!r} is listed twice; give it one weight.")
        if isinstance(found, RowLoss):
            rows.append((name, found, own))
        else:
            features.append((name, found, own))
    return rows, features
