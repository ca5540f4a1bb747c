"""Losses on rows: a token's logits, whatever the rows are of.

Legend: N rows, V outputs of a row (vocabulary, or values).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field

from zoo.loss import LossOptions, RowLoss
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
