"""What a layer read over the calibration data, summed up: what quantizers and pruners know of their inputs."""

# N rows (tokens, or places of a convolution), I inputs of the layer

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Name = Literal["gram", "squares", "absmax", "sum", "abssum"]
NAMES: tuple[str, ...] = get_args(Name)
ROWS = 2048  # summed at a time: so many rows in float64 beside the sums


class Statistics:
    """Sums over the rows x (I,) that one layer read, padding left out; those that were asked for, the others None.

    Attributes:
        tokens: how many rows there were.
        gram: sum of x x^T, (I, I), float64.
        squares: sum of x^2, (I,), float64; the diagonal of `gram`.
        absmax: largest |x|, (I,), float64.
        sum: sum of x, (I,), float64.
        abssum: sum of |x|, (I,), float64.
    """

    def __init__(self, names: Collection[str]) -> None:
        if unknown := sorted(set(names) - set(NAMES)):
            raise ValueError(f"{unknown[0]!r} is no statistic; there are {', '.join(NAMES)}")
        self.names = tuple(name for name in NAMES if name in names)
        self.tokens = 0
        self.gram: Tensor | None = None
        self.squares: Tensor | None = None
        self.absmax: Tensor | None = None
        self.sum: Tensor | None = None
        self.abssum: Tensor | None = None

    @torch.no_grad()
    def add(self, x_NI: Tensor) -> None:
        """Count rows in."""
        if not len(x_NI) and self.tokens:
            return
        self.tokens += len(x_NI)
        for start in range(0, max(1, len(x_NI)), ROWS):
            rows_NI = x_NI[start : start + ROWS].detach().double()
            for name in self.names:
                self._join(name, rows_NI)

    def _join(self, name: str, rows_NI: Tensor) -> None:
        before = getattr(self, name)
        if name == "gram" and before is not None:
            before.addmm_(rows_NI.T, rows_NI)
            return
        new = SUMS[name](rows_NI)
        if before is not None:
            new = torch.maximum(before, new) if name == "absmax" else before + new
        setattr(self, name, new)

    @property
    def dead(self) -> int:
        """How many inputs were zero in every row; 0 where no statistic tells."""
        for name in ("squares", "absmax", "abssum", "gram"):
            seen = getattr(self, name)
            if seen is not None:
                return int(((seen.diagonal() if name == "gram" else seen) == 0).sum())
        return 0


SUMS: dict[str, Any] = {
    "gram": lambda x_NI: x_NI.T @ x_NI,
    "squares": lambda x_NI: x_NI.square().sum(0),
    "absmax": lambda x_NI: x_NI.abs().amax(0) if len(x_NI) else x_NI.new_zeros(x_NI.shape[1]),
    "sum": lambda x_NI: x_NI.sum(0),
    "abssum": lambda x_NI: x_NI.abs().sum(0),
}


def rows_read(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies its weight (O, I) with, (N, I): its inputs, or the patches under a convolution's kernel."""
    if isinstance(layer, nn.Conv2d):
        patches_BIN = F.unfold(x, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)
        return patches_BIN.transpose(1, 2).flatten(0, 1)
    return x.reshape(-1, x.shape[-1])


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if isinstance(layer.padding, str):  # "same", with which torch takes a stride of one alone
        height, width = ((d * (k - 1)) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return height, width
    height, width = layer.padding
    return height, width


def output_energy(weight_OI: Tensor, gram_II: Tensor) -> float:
    """Return ||X W^T||^2 over the tokens X of a gram, multiplied in the dtype of the weight."""
    return float(((weight_OI @ gram_II.to(weight_OI.dtype)) * weight_OI).sum(dtype=torch.float64).clamp(min=0))


def output_error(weight_OI: Tensor, changed_OI: Tensor, gram_II: Tensor) -> float:
    """Return ||X (W - W')^T|| / ||X W^T|| over the tokens X of a gram, to four digits."""
    weight_OI = weight_OI.double()
    return relative(output_energy(weight_OI - changed_OI.double(), gram_II), output_energy(weight_OI, gram_II))


def relative(lost: float, whole: float) -> float:
    """Return the root of a share of energy, to four digits; 0 where there is none at all."""
    return float(f"{(lost / whole) ** 0.5:.4g}") if whole > 0 else 0.0
