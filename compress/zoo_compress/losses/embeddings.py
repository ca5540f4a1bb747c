"""Losses on vectors that stand for whole samples: each vector, and how those of a batch lie to one another.

Legend: N rows, D width of a vector.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from zoo.errors import Refused
from zoo.loss import LossOptions, RowLoss
from zoo.tensors.batch import Rows

EPSILON = 1e-12  # of a squared distance: its root has no slope at 0


class Cosine(RowLoss):
    """1 - cos between the student's and the teacher's vector of a sample."""

    kind: ClassVar[str] = "embedding"
    padded: ClassVar[bool] = False

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: LossOptions
    ) -> torch.Tensor:
        assert teacher_NV is not None
        mine, theirs = student_NV.shape[-1], teacher_NV.shape[-1]
        if mine != theirs:
            raise Refused(
                f"The loss 'cosine' compares vectors of one width, and the student's have {mine} numbers, the teacher's "
                f'{theirs}. Compare how they lie to one another instead: loss = [{{ use = "rkd" }}].'
            )
        return 1 - F.cosine_similarity(student_NV.float(), teacher_NV.float(), dim=-1)


class RelationalKD(RowLoss):
    """Huber loss between the relations of a batch's vectors to one another (RKD, Park et al. 2019, 1904.05068, section 3.2).

    Relations are the distance of two, over the mean distance of the batch, and the angle at one between two others; so
    neither the width of the vectors nor their length matters. Each is a mean over all of them, and angles weigh twice as
    much as distances, the paper's ratio. One vector alone has no
    relations, and two are always the mean distance apart: there is something to learn in batches of three or more.
    """

    kind: ClassVar[str] = "embedding"
    whole: ClassVar[bool] = True
    padded: ClassVar[bool] = False

    class Options(LossOptions):
        distance: float = Field(1.0, ge=0, description="factor of the distances")
        angle: float = Field(2.0, ge=0, description="factor of the angles")

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Options
    ) -> torch.Tensor:
        assert teacher_NV is not None
        if len(student_NV) < 2:
            return student_NV.float().sum() * 0  # with a gradient
        (mine_NN, mine_NNN), (theirs_NN, theirs_NNN) = (relations(v.float()) for v in (student_NV, teacher_NV))
        count = len(student_NV)
        distances = F.smooth_l1_loss(mine_NN, theirs_NN, reduction="sum") / (count * (count - 1))
        angles = F.smooth_l1_loss(mine_NNN, theirs_NNN, reduction="sum") / max(1, count * (count - 1) * (count - 2))
        return options.distance * distances + options.angle * angles


def relations(vectors_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (N, N) over their mean, and the cosines (N, N, N) of the angle at i between j and k; 0 where two are one."""
    count = len(vectors_ND)
    apart_NND = vectors_ND[None] - vectors_ND[:, None]
    distance_NN = apart_NND.pow(2).sum(-1).clamp_min(EPSILON).sqrt()
    others_NN = 1 - torch.eye(count, dtype=distance_NN.dtype, device=distance_NN.device)
    unit_NND = apart_NND / distance_NN[..., None]
    cosine_NNN = unit_NND @ unit_NND.transpose(1, 2)
    return distance_NN * others_NN / (distance_NN * others_NN).sum() * (count * (count - 1)), cosine_NNN * others_NN
