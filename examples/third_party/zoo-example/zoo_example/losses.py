"""Reverse Kullback-Leibler divergence: the student is punished for what the teacher would not say.

MiniLLM (Gu et al. 2023, 2306.08543, section 2) minimises KL(student || teacher) over texts that the student writes, by
policy gradient. Here it is taken token by token over texts of the data, over the whole vocabulary, where it has a plain
gradient. Where the student cannot follow the teacher everywhere it picks what it can follow, and leaves the rest out;
forward KL ("kl") makes it cover everything a little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from zoo.family import Rows
from zoo.loss import LossOptions, RowLoss

# N rows, V vocabulary


class ReverseKL(RowLoss):
    """KL(student || teacher) at a temperature t, times t²."""

    class Options(LossOptions):
        temperature: float = Field(1.0, gt=0, description="divides both logits")

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Options
    ) -> torch.Tensor:
        assert teacher_NV is not None
        t = options.temperature
        student = F.log_softmax(student_NV.float() / t, dim=-1)
        teacher = F.log_softmax(teacher_NV.float() / t, dim=-1)
        return F.kl_div(teacher, student, log_target=True, reduction="none").sum(-1) * t**2
