"""Half-quadratic quantization (Badri and Shaji 2023, HQQ): steps that make the p-norm of what rounding loses small, without data.

Of |W - W_r|^p + (beta / 2) |E - (W - W_r)|^2 the first half is solved by shrinking E = shrink(W - W_r), the second by
steps nearest to W - E. HQQ keeps the scale and moves a zero in floating point; here the zero is the whole number that is stored, which
a scale that stays would hold in place, so both follow by least squares, and each group keeps the best steps it has had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_compress.methods.quantize.solvers.grid import Codes, Grid, Steps

NORM, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20


def hqq(weight_OI: Tensor, grid: Grid, iterations: int = ITERATIONS) -> Codes:
    """Put a weight on a grid whose steps were moved so that rounding loses little."""
    weight_OGg = grid.grouped(weight_OI)
    unit_OG1 = weight_OGg.abs().amax(-1, keepdim=True).clamp(min=1e-30)  # beta is for weights of one size
    best = grid.nearest(weight_OI)
    least_OG = _loss(weight_OGg, best, grid)
    current, beta = best, BETA
    for _ in range(iterations):
        lost_OGg = (weight_OGg - grid.grouped(current.weight())) / unit_OG1
        target_OGg = weight_OGg - shrink(lost_OGg, beta) * unit_OG1
        current = grid.nearest(weight_OI, fitted(target_OGg, current, grid))
        loss_OG = _loss(weight_OGg, current, grid)
        better_OG = loss_OG < least_OG
        if not better_OG.any():
            break
        least_OG = torch.where(better_OG, loss_OG, least_OG)
        steps = (torch.where(better_OG, new, old) for new, old in zip(current.steps, best.steps, strict=True))
        best = grid.nearest(weight_OI, Steps(*steps))
        beta *= KAPPA
    return best


def shrink(lost: Tensor, beta: float) -> Tensor:
    """The generalised soft threshold of the p-norm."""
    size = lost.abs()
    return lost.sign() * (size - size.clamp(min=1e-8).pow(NORM - 1) / beta).clamp(min=0)


def fitted(target_OGg: Tensor, codes: Codes, grid: Grid) -> Steps:
    """The steps that bring codes nearest to a target: scale by least squares for the zero there is, then zero."""
    scale_OG, zero_OG = codes.steps
    codes_OGg = grid.grouped(codes.codes)
    if not grid.symmetric and grid.bits == 4:
        zero_OG = (codes_OGg - target_OGg / scale_OG[..., None]).mean(-1).round().clamp(grid.lowest, grid.highest)
    counted_OGg = codes_OGg - zero_OG[..., None]
    size_OG = counted_OGg.square().sum(-1)
    fit_OG = (counted_OGg * target_OGg).sum(-1) / size_OG.clamp(min=1)
    return Steps(grid.stored(torch.where((size_OG > 0) & (fit_OG != 0), fit_OG, scale_OG)), zero_OG)


def _loss(weight_OGg: Tensor, codes: Codes, grid: Grid) -> Tensor:
    return (weight_OGg - grid.grouped(codes.weight())).abs().pow(NORM).sum(-1)
