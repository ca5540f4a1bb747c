"""Where a matrix lies in memory must not change what comes out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from zoo.system.memory import peak_bytes, reset_peak, resident_bytes
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


def test_what_is_copied_out_of_a_mapped_file_leaves_memory(tmp_path: Path):
    """Weights of a checkpoint begin where its header ends: each is copied, and let go of in the file."""
    size = 64_000_000
    weights = {f"part.{index}.weight": torch.full((1000, 2000), float(index)) for index in range(8)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"pad": "x" * 3})
    del weights
    reset_peak()
    before = resident_bytes()
    module = nn.Module()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        parts = [nn.Linear(2000, 1000, bias=False, device="meta") for _ in range(8)]
        for index, part in enumerate(parts):
            part.weight = nn.Parameter(file.get_tensor(f"part.{index}.weight"))
        module.parts = nn.ModuleList(parts)
    assert any(part.weight.data_ptr() % BYTES for part in parts)
    align(module, just_read=True)
    assert all(part.weight.data_ptr() % BYTES == 0 for part in parts)
    assert [float(part.weight.detach().sum()) for part in parts] == [index * 2e6 for index in range(8)]
    assert peak_bytes() - before < 1.25 * size


def test_a_table_that_is_only_looked_up_may_lie_anywhere():
    module = nn.Module()
    table, head = nn.Embedding(4, 8), nn.Linear(8, 4, bias=False)
    table.weight = nn.Parameter(placed(torch.ones(4, 8), at=4))
    head.weight = nn.Parameter(placed(torch.ones(4, 8), at=4))
    module.table, module.head = table, head
    module.get_input_embeddings, module.get_output_embeddings = lambda: table, lambda: head
    align(module)
    assert table.weight.data_ptr() % BYTES and head.weight.data_ptr() % BYTES == 0
    head.weight = table.weight
    align(module)
    assert table.weight.data_ptr() % BYTES == 0
