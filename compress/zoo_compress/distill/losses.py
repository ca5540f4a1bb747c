"""Losses of training and distillation.

A token loss maps logits to one value a token; the objective feeds it chunks of tokens, so that two (B, T, V) tensors
never exist at once. A feature loss compares the outputs of blocks.

Legend: N tokens, V vocabulary, B batch, T window, D width, L blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from zoo.compressor import CompressorOptions


class LossOptions(CompressorOptions):
    """Options that every loss shares."""

    weight: float = Field(1.0, ge=0, description="factor of this loss in the sum")


class TokenLoss(ABC):
    """A loss that needs only the logits and the label of a token."""

    Options: ClassVar[type[LossOptions]] = LossOptions
    needs_teacher: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, label_N: torch.Tensor, options: Any
    ) -> torch.Tensor:
        """Return one value a token (N,), in nats."""


class CrossEntropy(TokenLoss):
    """Negative log likelihood of the next token."""

    needs_teacher = False

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, label_N: torch.Tensor, options: LossOptions
    ) -> torch.Tensor:
        return F.cross_entropy(student_NV.float(), label_N, reduction="none")


class ForwardKL(TokenLoss):
    """KL(teacher || student) at a temperature t, times t² (Hinton et al. 2015, 1503.02531, section 2)."""

    class Options(LossOptions):
        temperature: float = Field(1.0, gt=0, description="divides both logits")

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, label_N: torch.Tensor, options: Options
    ) -> torch.Tensor:
        assert teacher_NV is not None
        t = options.temperature
        student = F.log_softmax(student_NV.float() / t, dim=-1)
        teacher = F.log_softmax(teacher_NV.float() / t, dim=-1)
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1) * t**2


class FeatureLoss(ABC):
    """A loss on the outputs of blocks."""

    Options: ClassVar[type[LossOptions]] = LossOptions
    needs_teacher: ClassVar[bool] = True

    @abstractmethod
    def build(self, *, layers: tuple[int, int], widths: tuple[int, int], options: Any, seed: int) -> nn.Module:
        """Make the module that compares the block outputs of student and teacher, given as (student, teacher) shapes.

        It is called with two lists of (B, T, D) and returns a scalar; parameters of its own are trained along, then dropped.
        """


class HiddenState(FeatureLoss):
    """Mean squared error between mapped blocks' outputs, relative to the teacher's mean square.

    Block l of the student (1-based) learns from block round(l * L_teacher / L_student); a linear map lifts the student's
    width where it differs (FitNets, Romero et al. 2015, 1412.6550, section 2.1; TinyBERT's uniform map, 1909.10351).
    """

    class Options(LossOptions):
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
