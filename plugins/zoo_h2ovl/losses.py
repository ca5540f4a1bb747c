"""The losses of LLaVA-KD (2410.16236, section 3) at the image tokens; beside them it has "cross-entropy" and "kl" at the answer.

Legend: N image tokens of a batch, K of them in one sample, V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from zoo_compress.losses.rows import ForwardKL

from zoo.loss import LossOptions, RowLoss
from zoo.tensors.batch import Rows


class VisualKL(ForwardKL):
    """KL(teacher || student) of the predictions at the image tokens; the paper's temperature is 1."""

    kind: ClassVar[str] = "visual"


class VisualRelation(RowLoss):
    """1 - cos between the student's and the teacher's matrices of products between image tokens: L_rel.

    The products are of raw logits, without softmax or norm; each sample has its matrix (K, K), and one cosine is taken
    over those of the whole batch, as in the authors' code. The paper's weight is 0.5, the code's 1.
    """

    kind: ClassVar[str] = "visual"
    whole: ClassVar[bool] = True

    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: LossOptions
    ) -> torch.Tensor:
        assert teacher_NV is not None
        if not len(rows):
            return student_NV.sum()  # a batch without images: zero, with a gradient
        mine, theirs = (relations(logits_NV.float(), rows.sample) for logits_NV in (student_NV, teacher_NV))
        return 1 - F.cosine_similarity(mine, theirs, dim=0)


def relations(logits_NV: torch.Tensor, sample_N: torch.Tensor) -> torch.Tensor:
    """The entries of every sample's matrix of products (K, K), one after the other."""
    parts = [logits_NV[sample_N == number] for number in sorted(set(sample_N.tolist()))]
    return torch.cat([(part_KV @ part_KV.T).flatten() for part_KV in parts])
