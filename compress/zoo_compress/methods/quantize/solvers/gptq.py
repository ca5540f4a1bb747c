"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round column by column, each column's error made up for by those after it.

With H = X^T X, damped, and U the upper Cholesky factor of H^-1, column j is rounded, and (w_j - q_j) / U_jj times U_j,k is
taken from every later column k. Columns go by descending H_jj. Groups lie as in the weight and their steps are chosen
before the walk, so nothing of the order has to be stored.

Afterwards every code moves to where the output changes least (Behdin et al. 2023, QuantEase, arXiv:2309.01885), and so do scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_compress.methods.quantize.solvers.grid import Codes, Grid, Steps

BLOCK = 128  # columns whose errors reach the rest at once
SWEEPS = 3  # over all columns afterwards; a fourth gains next to nothing
# Shares of the mean of H's diagonal. No single one is best: of SmolLM2's second block, calibrated on 8,192 tokens, q, k and v lose
# 12 % more on other tokens with .2 than with .01, and down loses 7 % more with .01 than with .2.
DAMPINGS = (0.01, 0.05, 0.2)
USUAL, MOST = 0.05, 1.0  # where none can be chosen; where those before give no factor


@dataclass(frozen=True)
class Factor:
    """What GPTQ reads of calibration: the order of columns and U, both of one gram, so of all layers with one input."""

    order: Tensor
    upper: Tensor  # (in, in), float32, in that order
    hessian: Tensor  # H itself, likewise
    damping: float
    dead: int  # inputs that were always zero


def factor(gram_II: Tensor, damping: float = USUAL) -> Factor | None:
    """Order and factor a gram, damped so much or, where that is too little, more; None where no damping makes it positive definite."""
    gram_II = gram_II.double()
    diagonal_I = gram_II.diagonal()
    dead_I = diagonal_I == 0  # such inputs reach no other: they are rounded like on their own
    if not bool(torch.isfinite(diagonal_I).all()) or bool(dead_I.all()):
        return None
    order = diagonal_I.argsort(descending=True, stable=True)
    ordered_II = gram_II[order][:, order]
    ordered_II.diagonal().add_(dead_I[order].double() * diagonal_I.mean())
    for share in (damping, *(more for more in (*DAMPINGS, MOST) if more > damping)):
        damped_II = ordered_II.clone()
        damped_II.diagonal().add_(share * diagonal_I.mean())
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if failed:
            continue
        upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not failed and bool(torch.isfinite(upper_II).all()):
            return Factor(order, upper_II.float(), damped_II.float(), share, int(dead_I.sum()))
    return None


def gptq(weight_OI: Tensor, factored: Factor, grid: Grid, steps: Steps | None = None) -> Codes:
    """Round a weight column by column on the steps given, or on those that span its ranges."""
    steps = steps or grid.steps(*grid.ranges(weight_OI))
    order, upper_II = factored.order, factored.upper
    left_IO = weight_OI.t()[order].contiguous()  # what is still to be rounded; a column of the weight is a row here
    codes_IO = torch.empty_like(left_IO)
    scale_GO, zero_GO = (each.t().contiguous() for each in steps)
    groups = (order // grid.group).tolist()
    reach_I = upper_II.diagonal().tolist()
    zeros_IO = left_IO == 0 if bool((left_IO == 0).any()) else None
    for start in range(0, len(left_IO), BLOCK):
        end = min(start + BLOCK, len(left_IO))
        errors_BO = torch.empty_like(left_IO[start:end])
        for j in range(start, end):
            scale_O, zero_O, column_O = scale_GO[groups[j]], zero_GO[groups[j]], left_IO[j]
            torch.clamp((column_O / scale_O + zero_O).round_(), grid.lowest, grid.highest, out=codes_IO[j])
            if zeros_IO is not None:
                torch.where(zeros_IO[j], zero_O, codes_IO[j], out=codes_IO[j])
            error_O = torch.sub(column_O, (codes_IO[j] - zero_O).mul_(scale_O), out=errors_BO[j - start])
            error_O /= reach_I[j]
            left_IO[j + 1 : end].addr_(upper_II[j, j + 1 : end], error_O, alpha=-1)
        left_IO[end:].addmm_(upper_II[start:end, end:].t(), errors_BO, alpha=-1)
    codes_OI = torch.empty_like(weight_OI)
    codes_OI[:, order] = codes_IO.t()
    return Codes(codes_OI, steps)


def descend(weight_OI: Tensor, start: Codes, factored: Factor, grid: Grid, sweeps: int = SWEEPS) -> Codes:
    """Move every column of codes in turn to where the output changes least, on the steps that they have."""
    order, hessian_II = factored.order, factored.hessian
    codes_IO = start.codes.t()[order].contiguous()
    scale_IO, zero_IO = (each.t()[order].contiguous() for each in start.steps.each(len(order)))
    weight_IO = weight_OI.t()[order].contiguous()
    size_I = hessian_II.diagonal().tolist()
    zeros_IO = weight_IO == 0 if bool((weight_IO == 0).any()) else None
    for _ in range(sweeps):
        pull_IO = hessian_II @ (weight_IO - (codes_IO - zero_IO) * scale_IO)  # of each column, towards less error
        for first in range(0, len(order), BLOCK):
            last = min(first + BLOCK, len(order))
            moved_BO = torch.empty_like(codes_IO[first:last])
            for j in range(first, last):
                better_O = (codes_IO[j] + pull_IO[j] / (scale_IO[j] * size_I[j])).round_()
                better_O.clamp_(grid.lowest, grid.highest)
                if zeros_IO is not None:
                    better_O = torch.where(zeros_IO[j], codes_IO[j], better_O)
                torch.mul(better_O - codes_IO[j], scale_IO[j], out=moved_BO[j - first])
                codes_IO[j] = better_O
                pull_IO[j + 1 : last].addr_(hessian_II[j, j + 1 : last], moved_BO[j - first], alpha=-1)
            pull_IO[last:].addmm_(hessian_II[first:last, last:].t(), moved_BO, alpha=-1)
    codes_OI = torch.empty_like(start.codes)
    codes_OI[:, order] = codes_IO.t()
    return Codes(codes_OI, start.steps)


def refit(weight_OI: Tensor, codes: Codes, factored: Factor, grid: Grid) -> Codes:
    """Move the scale of every group in turn to where the output changes least, for the codes that there are."""
    order, hessian_II = factored.order, factored.hessian
    scale_GO, zero_OG = codes.steps.scale.t().contiguous(), codes.steps.zero
    steps_IO = (codes.codes - codes.steps.each(len(order)).zero).t()[order]  # from zero, whole numbers
    groups_I = order // grid.group
    pull_IO = hessian_II @ (weight_OI.t()[order] - steps_IO * scale_GO[groups_I])
    for group, scale_O in enumerate(scale_GO):
        own = (groups_I == group).nonzero().flatten()
        steps_gO = steps_IO[own]
        size_O = (steps_gO * (hessian_II[own][:, own] @ steps_gO)).sum(0)
        better_O = scale_O + (steps_gO * pull_IO[own]).sum(0) / size_O.clamp(min=1e-30)
        better_O = grid.stored(torch.where((size_O > 0) & (better_O * scale_O > 0), better_O, scale_O))
        pull_IO -= hessian_II[:, own] @ (steps_gO * (better_O - scale_O))
        scale_GO[group] = better_O
    return Codes(codes.codes, Steps(scale_GO.t().contiguous(), zero_OG))
