"""Wanda (Sun et al. 2023, arXiv:2306.11695, section 3): the weights that count least for what a row puts out go; no update.

The score of a weight is its size times the norm of its input over the calibration tokens, |W_oi| ||X_i||, and is compared
within each output row; for "N:M" in every group of M neighbouring inputs.
"""

# O out, I in

from __future__ import annotations

import torch

from zoo.model.lineage import Record
from zoo_compress.methods.prune.calibrated import CalibratedOptions, PruneByCalibration
from zoo_compress.methods.prune.magnitude import magnitude_pruned
from zoo_compress.methods.prune.patterns import keep_largest_of_rows, keep_of_groups, zeros_first


class PruneWanda(PruneByCalibration):
    """Zero the weights that count least for the outputs on calibration data, by size times input norm (Wanda, section 3)."""

    name = "prune.wanda"

    def prepare(self, gram_II: torch.Tensor) -> torch.Tensor:
        return gram_II.diagonal()

    def solve(
        self, matrix_OI: torch.Tensor, prepared: torch.Tensor, options: CalibratedOptions
    ) -> tuple[torch.Tensor, Record]:
        if not bool(prepared.any()):
            return magnitude_pruned(matrix_OI, options.share, options.groups), {"fallback": "magnitude"}
        return wanda_pruned(matrix_OI, prepared, options.share, options.groups), {}


def wanda_pruned(
    matrix_OI: torch.Tensor, squares_I: torch.Tensor, sparsity: float, groups: tuple[int, int] | None = None
) -> torch.Tensor:
    """Return a matrix in which each row has lost round(sparsity * inputs) weights, or M - N of each `groups` (N, M).

    Args:
        squares_I: of each input the sum, or the mean, of its squares over the calibration tokens.
    """
    norms_I = squares_I.to(matrix_OI.device).double().sqrt()
    scores_OI = zeros_first(matrix_OI.double().abs() * norms_I, matrix_OI == 0)
    keep_OI = (
        keep_of_groups(scores_OI, *groups)
        if groups
        else keep_largest_of_rows(scores_OI, round(sparsity * matrix_OI.shape[1]))
    )
    return torch.where(keep_OI, matrix_OI, 0.0)
