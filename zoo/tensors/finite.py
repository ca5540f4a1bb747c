"""Finite numbers: whether a tensor holds nan or infinity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.errors import ZooError

if TYPE_CHECKING:
    import torch


def require_fitting(values: torch.Tensor, rounded: torch.Tensor, *, name: str) -> None:
    """Refuse a rounding in which finite values became infinite.

    Raises:
        ZooError: names the tensor, its largest value and the dtype.
    """
    if rounded.dtype != values.dtype and not all_finite(rounded) and all_finite(values):
        dtype = str(rounded.dtype).removeprefix("torch.")
        largest = max(map(abs, ends(values)))
        raise ZooError(
            f'{name} holds {largest:.4g}, which is too large for {dtype}. Store the model in another: stored = "float32" in [model].'
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither nan nor infinity."""
    return all(map(math.isfinite, ends(tensor)))


def ends(tensor: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest value, both nan where one is; 0 and 0 where there is none. One pass, no copy."""
    import torch

    if tensor.numel() == 0 or tensor.is_meta or not tensor.is_floating_point():
        return 0.0, 0.0
    wide = tensor.detach().to(torch.bfloat16) if tensor.dtype.itemsize == 1 else tensor.detach()
    low, high = torch.stack(torch.aminmax(wide)).tolist()
    return low, high


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether all is finite; a buffer may hold -infinity, as masks do."""
    import torch

    low, high = ends(tensor)
    masks = low == -math.inf and not isinstance(tensor, torch.nn.Parameter)
    return high < math.inf and (math.isfinite(low) or masks)
