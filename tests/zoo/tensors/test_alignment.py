"""Where a matrix lies in memory must not change what comes out of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.tensors.alignment import BYTES, align

pytestmark = pytest.mark.quick


def placed(matrix: torch.Tensor, *, at: int) -> torch.Tensor:
    """The same values, beginning `at` entries after a multiple of 64 bytes."""
    room = torch.empty(matrix.numel() + 2 * BYTES, dtype=matrix.dtype)
    start = -room.data_ptr() // matrix.element_size() % (BYTES // matrix.element_size()) + at
    found = room[start : start + matrix.numel()].view(matrix.shape)
    assert found.data_ptr() % BYTES == at * matrix.element_size() % BYTES
    return found.copy_(matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_linear_layer_gives_the_same_wherever_its_matrix_lies(dtype: torch.dtype):
    draw = torch.Generator().manual_seed(0)
    for width in (32, 33, 96, 100, 576):
        for rows in (32, 48, 1000):
            matrix = torch.randn(rows, width, generator=draw).to(dtype)
            for tokens in (1, 2, 17):
                x = torch.randn(tokens, width, generator=draw).to(dtype)
                expected = layer(placed(matrix, at=0))(x)
                for at in (1, 4, 8, 12):
                    assert torch.equal(layer(placed(matrix, at=at))(x), expected), (width, rows, tokens, at)


def layer(matrix: torch.Tensor) -> nn.Linear:
    """A linear layer whose matrix lies where it is put, aligned as a loaded model's is."""
    found = nn.Linear(*reversed(matrix.shape), bias=False, device="meta")
    found.weight = nn.Parameter(matrix, requires_grad=False)
    align(found)
    return found


def test_sixteen_bits_stay_where_they_are():
    kept, moved = placed(torch.ones(8, 8, dtype=torch.bfloat16), at=4), placed(torch.ones(8, 8), at=4)
    assert layer(kept).weight.data_ptr() == kept.data_ptr()
    assert layer(moved).weight.data_ptr() != moved.data_ptr()
