"""SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774, section 3): prune column by column, and let the rest make up for it.

With H = X^T X of the calibration inputs, damped, and U the upper Cholesky factor of its inverse, removing w_j costs
w_j^2 / U_jj^2 once the later columns have taken over what they can: each then loses w_j / U_jj * U_jk. Which weights go is
chosen before each block of columns from the weights as they then are ("N:M": before every M columns).
"""

# O out, I in, B columns of a block, M inputs of a group

from __future__ import annotations

from dataclasses import dataclass

import torch

from zoo.model.lineage import Record
from zoo_compress.methods.prune.calibrated import CalibratedOptions, PruneByCalibration
from zoo_compress.methods.prune.magnitude import magnitude_pruned
from zoo_compress.methods.prune.patterns import keep_largest, keep_of_groups, zeros_first
from zoo_compress.methods.prune.wanda import wanda_pruned

COLUMNS = 128  # of a block, the authors'
DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of H's diagonal: the authors', then what is tried where H has no factor


class PruneSparseGPT(PruneByCalibration):
    """Zero weights one input after another, and update those that are left to make up for it (SparseGPT, section 3)."""

    name = "prune.sparsegpt"

    def prepare(self, gram_II: torch.Tensor) -> InverseFactor | torch.Tensor:
        return inverse_factor(gram_II) or gram_II.diagonal()

    def solve(
        self, matrix_OI: torch.Tensor, prepared: InverseFactor | torch.Tensor, options: CalibratedOptions
    ) -> tuple[torch.Tensor, Record]:
        if isinstance(prepared, InverseFactor):
            pruned_OI = sparsegpt_pruned(matrix_OI, prepared, options.share, options.groups)
            return pruned_OI, {"damping": prepared.damping}
        if bool(prepared.any()):
            return wanda_pruned(matrix_OI, prepared, options.share, options.groups), {"fallback": "wanda"}
        return magnitude_pruned(matrix_OI, options.share, options.groups), {"fallback": "magnitude"}


@dataclass(frozen=True)
class InverseFactor:
    """The upper Cholesky factor of a damped gram's inverse: one for all the layers that read the same inputs."""

    upper_II: torch.Tensor
    dead_I: torch.Tensor  # inputs that were zero for every token
    damping: float  # the share of the mean diagonal that was added


def inverse_factor(gram_II: torch.Tensor) -> InverseFactor | None:
    """Return the factor under the least damping that gives one; None where the inputs were all zero, or none does."""
    gram_II = gram_II.double()
    dead_I = gram_II.diagonal() == 0
    if bool(dead_I.all()):
        return None
    mean = gram_II.diagonal()[~dead_I].mean()
    for damping in DAMPINGS:
        damped_II = gram_II.clone()
        damped_II.diagonal().add_(damping * mean)
        damped_II.diagonal()[dead_I] = mean  # any size will do: a dead input's weights are zero, and no other reads it
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if int(failed):
            continue
        upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not int(failed):
            return InverseFactor(upper_II, dead_I, damping)
    return None


def sparsegpt_pruned(
    matrix_OI: torch.Tensor,
    factor: InverseFactor,
    sparsity: float,
    groups: tuple[int, int] | None = None,
    *,
    columns: int = COLUMNS,
) -> torch.Tensor:
    """Return a matrix of which round(sparsity * size) entries are zero, or M - N of each `groups` (N, M), the others updated.

    Zeros that are there stay and count; the weights of dead inputs become zero, as no token tells what they are worth.
    """
    if not groups and round(sparsity * matrix_OI.numel()) == 0:
        return matrix_OI.clone()
    weight_OI = matrix_OI.double()
    weight_OI = weight_OI.masked_fill(factor.dead_I.to(weight_OI.device), 0.0)
    # a column of weights in one piece of memory
    weight_IO, zero_IO = weight_OI.T.contiguous(), (weight_OI.T == 0).contiguous()
    upper_II = factor.upper_II.to(weight_IO.device)
    inputs = len(weight_IO)
    step = max(1, columns // groups[1]) * groups[1] if groups else columns
    spans = [slice(start, min(start + step, inputs)) for start in range(0, inputs, step)]
    counts = [0] * len(spans) if groups else _zeros_of_spans(zero_IO, spans, sparsity)
    for span, zeros in zip(spans, counts, strict=True):
        upper_BB = upper_II[span, span]
        pruned_BO, errors_BO = _prune_block(weight_IO[span], zero_IO[span], upper_BB, zeros, groups)
        weight_IO[span] = pruned_BO
        weight_IO[span.stop :] -= upper_II[span, span.stop :].T @ errors_BO
    return weight_IO.T.to(matrix_OI.dtype).contiguous()


def _zeros_of_spans(zero_IO: torch.Tensor, spans: list[slice], sparsity: float) -> list[int]:
    """How many zeros each block gets: those it has, and of the missing ones its share by the weights it has left."""
    present = [int(zero_IO[span].sum()) for span in spans]
    left = [zero_IO[span].numel() - count for span, count in zip(spans, present, strict=True)]
    missing = max(0, round(sparsity * zero_IO.numel()) - sum(present))
    counts, before, given = [], 0, 0
    for count, others in zip(present, left, strict=True):
        before += others
        upto = round(missing * before / max(1, sum(left)))
        counts.append(count + upto - given)
        given = upto
    return counts


def _prune_block(
    weight_BO: torch.Tensor,
    zero_BO: torch.Tensor,
    upper_BB: torch.Tensor,
    zeros: int,
    groups: tuple[int, int] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune a block of columns one after another; return it, and the error that each column leaves to those behind the block."""
    weight_BO = weight_BO.clone()
    errors_BO = torch.empty_like(weight_BO)
    cost_B1 = upper_BB.diagonal().square()[:, None]
    keep_BO = torch.zeros_like(zero_BO)
    if not groups:
        keep_BO = keep_largest(zeros_first(weight_BO.square() / cost_B1, zero_BO).T, zeros).T
    for column, row_B in enumerate(upper_BB):
        if groups and column % groups[1] == 0:
            group = slice(column, column + groups[1])
            scores_MO = zeros_first(weight_BO[group].square() / cost_B1[group], zero_BO[group])
            keep_BO[group] = keep_of_groups(scores_MO.T.contiguous(), *groups).T
        keep_O = keep_BO[column] & ~zero_BO[column]
        error_O = weight_BO[column].masked_fill(keep_O, 0.0) / row_B[column]
        errors_BO[column] = error_O
        weight_BO[column:] -= row_B[column:, None] * error_O
        weight_BO[column].masked_fill_(~keep_O, 0.0)
    return weight_BO, errors_BO
