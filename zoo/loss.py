"""The contracts of a loss.

A row loss compares predictions row by row: a token's logits, an image's velocity. It is called on chunks of rows, so
that two tensors of logits never exist in full. A feature loss compares the outputs of blocks.

Legend: N rows, V outputs of a row (vocabulary, or values), B batch, T window, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from zoo.options import CompressorOptions
from zoo.tensors.batch import Rows


class LossOptions(CompressorOptions):
    """Options that every loss shares."""

    weight: float = Field(1.0, ge=0, description="factor of this loss in the sum")


class RowLoss(ABC):
    """A loss on the rows of one kind. The stage multiplies what it returns by `options.weight`."""

    Options: ClassVar[type[LossOptions]] = LossOptions
    kind: ClassVar[str] = "label"  # of the rows it compares
    needs_teacher: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False  # the data must say what is right
    whole: ClassVar[bool] = False  # is given all rows of a batch at once, since it relates them to one another
    padded: ClassVar[bool] = True  # of outputs of two widths, those beyond the narrower are padding, and are cut

    @abstractmethod
    def __call__(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: Any
    ) -> torch.Tensor:
        """Return one value a row (N,), or, where the loss is `whole`, one for all rows; in nats where it is a likelihood."""


class FeatureOptions(LossOptions):
    """Options that every feature loss shares."""

    target: str = Field("", description="the stack whose blocks are compared; empty: the model's main one")


class FeatureLoss(ABC):
    """A loss on the outputs of blocks; it needs a teacher."""

    Options: ClassVar[type[FeatureOptions]] = FeatureOptions

    @abstractmethod
    def build(self, *, layers: tuple[int, int], widths: tuple[int, int], options: Any, seed: int) -> nn.Module:
        """Make the module that compares the block outputs of student and teacher, given as (student, teacher) shapes.

        It is called with two lists of (B, T, D), or (1, N, D) with the tokens of all samples where some were padded, and
        returns a scalar; parameters of its own are trained along, then dropped.
        """
