"""Losses of flow matching and its distillation (SnapGen, arXiv:2412.09619), and of the autoencoder.

Rows are images. Legend: N images, V values of one velocity or image.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field

from zoo.loss import LossOptions, RowLoss
from zoo.tensors.batch import Rows

MOST = 100.0  # and 1 / MOST: bounds of the ratio that brings the teacher's term to the task's size


class SquaredError(RowLoss):
    """Mean squared error to the data, whatever the rows are."""

    needs_teacher: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Any
    ) -> torch.Tensor:
        assert rows.target is not None
        return _distance(student_NV, rows.target)


class Velocity(SquaredError):
    """Flow matching: mean squared error to eps - x0 (SD3, 2403.03206, section 2)."""

    kind: ClassVar[str] = "velocity"


class Reconstruction(SquaredError):
    """Mean squared error of the decoded image."""

    kind: ClassVar[str] = "pixel"


class VelocityKD(RowLoss):
    """Output distillation: mean squared error to the teacher's velocity."""

    kind: ClassVar[str] = "velocity"

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Any
    ) -> torch.Tensor:
        assert teacher_NV is not None
        return _distance(student_NV, teacher_NV)


class TimestepAware(RowLoss):
    """Data where the time is easy, the teacher where it is hard: a * L_task + (1 - a) * |L_task| / |L_kd| * L_kd.

    The form is SnapGen's, as a digest gives it; its function of time was not found. Here a(t) is the logit-normal(0, 1)
    density over its value at 1/2: 1 there, 0 at both ends. The ratio is not differentiated, and bounded.
    """

    kind: ClassVar[str] = "velocity"
    needs_target: ClassVar[bool] = True

    class Options(LossOptions):
        floor: float = Field(0.0, ge=0, le=1, description="least weight of the data, at any time")

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Options
    ) -> torch.Tensor:
        assert teacher_NV is not None and rows.target is not None and rows.time is not None
        task_N, taught_N = _distance(student_NV, rows.target), _distance(student_NV, teacher_NV)
        ratio_N = (task_N / taught_N.clamp_min(1e-12)).detach().clamp(1 / MOST, MOST)
        share_N = data_share(rows.time).clamp_min(options.floor)
        return share_N * task_N + (1 - share_N) * ratio_N * taught_N


def data_share(time_N: torch.Tensor) -> torch.Tensor:
    """a(t) = rho(t) / rho(1/2), rho(t) = exp(-logit(t)^2 / 2) / (sqrt(2 pi) t (1 - t)); the weight of the data."""
    t = time_N.float().clamp(1e-6, 1 - 1e-6)
    rho = torch.exp(-torch.logit(t).square() / 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
    return rho * math.sqrt(2 * math.pi) / 4


def _distance(one_NV: torch.Tensor, other_NV: torch.Tensor) -> torch.Tensor:
    return (one_NV.float() - other_NV.float()).square().mean(-1)
