"""The order in which bitsandbytes' kernel for CPUs reads 4-bit codes: a permutation of those that are stored."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 32  # outputs whose codes lie together in the order of the kernel


def to_lanes(codes: Tensor, outputs: int) -> Tensor:
    """Put codes into the order of bitsandbytes' kernel: (outputs, inputs / 2).

    A stored byte holds neighbours of a row, the first in the high nibble. A byte of the kernel holds inputs of two rows, 16 apart,
    the first row in the low nibble; 32 rows lie together, and of them each input pair by pair.
    """
    first, second = codes.view(outputs // LANES, 2, LANES // 2, -1).unbind(1)
    even, odd = first >> 4 | second & 0xF0, first & 15 | second << 4
    return torch.stack((even, odd), dim=-1).transpose(1, 2).reshape(outputs, -1)


def from_lanes(lanes: Tensor) -> Tensor:
    """The stored codes (outputs * inputs / 2, 1) from the order of the kernel."""
    outputs, half = lanes.shape
    even, odd = lanes.view(outputs // LANES, half, LANES // 2, 2).transpose(1, 2).unbind(-1)
    first, second = (even & 15) << 4 | odd & 15, even & 0xF0 | odd >> 4
    return torch.stack((first, second), dim=1).reshape(-1, 1)
