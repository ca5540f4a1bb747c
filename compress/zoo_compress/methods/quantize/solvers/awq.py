"""AWQ (Lin et al. 2023, arXiv:2306.00978): protect the inputs that matter by scaling them up, then clip ranges.

Inputs are multiplied by s_j = mean|x_j|^alpha in the weight and divided by it before the layer, where that folds into the
weight before; alpha is the one whose rounded weights change the output least. Then each group's range is shrunk as far as
its own share of the output gains. Errors are exact, from the gram: tr((W - W') G (W - W')^T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_compress.calibrate.statistics import output_energy
from zoo_compress.methods.quantize.solvers.grid import Grid, Steps

ALPHAS = tuple(i / 20 for i in range(20))
SHRINKS = tuple(1 - i / 20 for i in range(10))


@dataclass(frozen=True)
class Scaling:
    """By what inputs are multiplied in the weight and divided before the layer; all ones where rounding alone is best."""

    scale: Tensor
    alpha: float


def search_scale(weights: Sequence[Tensor], grids: Sequence[Grid], gram_II: Tensor, mean_I: Tensor) -> Scaling:
    """Find the scaling of layers that read the same input.

    Args:
        mean_I: mean of |x| of every input.
    """
    gram_II = gram_II.float()
    best, least = Scaling(torch.ones_like(mean_I, dtype=torch.float32), 0.0), float("inf")
    for alpha in ALPHAS:
        scale_I = scale_of(mean_I, alpha)
        lost = 0.0
        for weight_OI, grid in zip(weights, grids, strict=True):
            lost += output_energy(weight_OI - grid.nearest(weight_OI * scale_I).weight() / scale_I, gram_II)
        if lost < least:
            best, least = Scaling(scale_I, alpha), lost
    return best


def scale_of(mean_I: Tensor, alpha: float) -> Tensor:
    """mean|x|^alpha, normalised so that its largest and smallest entry are as far from 1; ones for inputs that are always zero."""
    scale_I = mean_I.double().clamp(min=1e-8).pow(alpha)
    scale_I = torch.where(mean_I > 0, scale_I, 1.0) if alpha else torch.ones_like(scale_I)
    live_I = scale_I[mean_I > 0] if bool((mean_I > 0).any()) else scale_I
    scale_I = scale_I / (live_I.max() * live_I.min()).sqrt()
    return torch.where(mean_I > 0, scale_I, 1.0).float()


def clip(weight_OI: Tensor, grid: Grid, gram_II: Tensor) -> Steps:
    """Shrink the range of every group to where its own part of the output changes least."""
    weight_OGg = grid.grouped(weight_OI)
    low_OG, high_OG = grid.ranges(weight_OI)
    blocks_Ggg = diagonal_blocks(gram_II, grid.group).float()
    best, least_OG = grid.steps(low_OG, high_OG), torch.full_like(low_OG, float("inf"))
    for shrink in SHRINKS:
        steps = grid.steps(low_OG * shrink, high_OG * shrink)
        lost_GOg = (weight_OGg - grid.grouped(grid.nearest(weight_OI, steps).weight())).transpose(0, 1)
        lost_OG = ((lost_GOg @ blocks_Ggg) * lost_GOg).sum(-1).t()
        better_OG = lost_OG < least_OG
        least_OG = torch.where(better_OG, lost_OG, least_OG)
        best = Steps(*(torch.where(better_OG, new, old) for new, old in zip(steps, best, strict=True)))
    return best


def diagonal_blocks(gram_II: Tensor, group: int) -> Tensor:
    """The part of a gram that is within each group, (groups, g, g)."""
    groups = len(gram_II) // group
    return torch.stack([gram_II[i * group : (i + 1) * group, i * group : (i + 1) * group] for i in range(groups)])
