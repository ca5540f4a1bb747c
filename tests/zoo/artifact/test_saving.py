"""Saving takes the memory of one tensor beside the model, whatever its size and the dtype it is stored in.

Small models are run as well, when it is proved that what was written is the model; that takes a copy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stages import small

from zoo.artifact import proof, weights
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes
from zoo.tensors.mapped import MappedTensors


def test_one_tensor_at_a_time_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proof, "SMALL", 0)
    small("llama").save(tmp_path / "small")  # what is imported for it is nobody's memory
    model = small("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=10)
    model.stored = "bfloat16"
    model.round()
    assert model.bytes > 16 * max(tensor.nbytes for tensor in model.tensors().values())
    reset_peak()
    before = resident_bytes()
    model.save(tmp_path / "saved")
    assert peak_bytes() - before < model.bytes / 2, "a copy of the model as it is stored takes all of its bytes"


def test_what_loses_nothing_is_stored_narrow_and_the_rest_as_it_is(tmp_path: Path):
    model = small("llama")
    model.stored = "bfloat16"
    rounded = {name: tensor.detach().bfloat16().float() for name, tensor in model.tensors().items()}
    kept = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        for name, tensor in model.tensors().items():
            tensor.copy_(tensor if name == kept else rounded[name])
        model.tensors()[kept][-1, -1] = 1 + 2**-20  # one value that bfloat16 does not have
    weights.write(model, tmp_path)
    mapped = MappedTensors(tmp_path / "model.safetensors")
    for name, tensor in model.tensors().items():
        expected = tensor.detach() if name == kept else tensor.detach().bfloat16()
        assert mapped.tensor(name).dtype == expected.dtype and torch.equal(mapped.tensor(name), expected)
