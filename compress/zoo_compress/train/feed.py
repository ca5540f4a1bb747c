"""Which windows a step sees, and what is drawn for each: a function of the seed and the row alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.model.model import Model
from zoo.tensors.batch import Batch, generators


def batch_of(model: Model, windows: Sequence[Batch], rows: Sequence[int], *, seed: int, device: torch.device) -> Batch:
    """Join the windows that fall to some rows and draw their noise."""
    batch = model.family.collate(model, [windows[shuffled(row, len(windows), seed)] for row in rows])
    drawn = model.family.draw(model, batch, generators(seed, rows))
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def parts(rows: range, count: int) -> list[range]:
    """Rows in so many parts of nearly one size, consecutive ones."""
    return [rows[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]


def shuffled(row: int, size: int, seed: int) -> int:
    """Position of the `row`-th draw: every window once an epoch, in an order that follows from seed and epoch."""
    epoch, position = divmod(row, size)
    if (size, seed, epoch) not in _orders:
        _orders.clear()
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        _orders[(size, seed, epoch)] = torch.randperm(size, generator=generator)
    return int(_orders[(size, seed, epoch)][position])


_orders: dict[tuple[int, int, int], torch.Tensor] = {}
