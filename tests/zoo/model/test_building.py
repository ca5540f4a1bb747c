"""Modules built without their weights: nothing of the weights in memory, and every buffer computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zoo.model.building import without_weights
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes

pytestmark = pytest.mark.quick


class Computes(nn.Module):
    """Buffers where a parameter is, in its dtype, and only if that is a real place; a copy; a tie; a write into a part."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, padding_idx=0)
        self.head = nn.Linear(4, 6, bias=False)
        self.table.weight.data = torch.ones(6, 4)  # as transformers pads the bias of a head
        self.head.weight = self.table.weight
        self.table.weight = self.head.weight
        self.copied = copy.deepcopy(nn.Linear(4, 4))
        first = next(self.parameters())
        self.register_buffer("places", torch.empty(3, device=first.device, dtype=first.dtype), persistent=False)
        if not first.is_meta:
            self.places.copy_(torch.arange(3))
            self.table.weight.data[1:].normal_()
            nn.init.trunc_normal_(self.copied.weight, std=0.02)
        self.narrow = nn.Linear(2, 2).to(torch.bfloat16)


def test_buffers_are_computed_and_parameters_have_no_place():
    module = without_weights(Computes)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.places.tolist() == [0, 1, 2]
    assert module.head.weight is module.table.weight
    assert module.narrow.weight.dtype == torch.bfloat16


def test_random_numbers_and_torch_are_as_before():
    state, register = torch.get_rng_state(), nn.Module.register_parameter
    without_weights(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    assert torch.equal(state, torch.get_rng_state()) and nn.Module.register_parameter is register
    assert not nn.Linear(2, 2).weight.is_meta


def test_weights_take_no_memory_while_they_are_built():
    """Eight layers of 256 MB, initialised by torch, copied and cast."""
    width = 8192
    without_weights(lambda: nn.Linear(2, 2))
    reset_peak()
    before = resident_bytes()
    module = without_weights(
        lambda: nn.Sequential(*(copy.deepcopy(nn.Linear(width, width)) for _ in range(8))).to(torch.float16)
    )
    assert module[7].weight.shape == (width, width) and module[7].weight.dtype == torch.float16
    assert peak_bytes() - before < 100_000_000
