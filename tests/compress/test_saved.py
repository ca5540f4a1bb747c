"""The activations a training step keeps, told from shapes, against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from stages import small
from torch.autograd.graph import saved_tensors_hooks
from zoo_compress.train.saved import saved_bytes

from zoo.model import Model


def really_kept(model: Model, *, batch: int, size: int) -> int:
    weights = {p.untyped_storage()._cdata for p in (*model.module.parameters(), *model.module.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.family.forward(model, model.family.example(model, batch=batch, size=size))
    assert output is not None
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gpt-neox", "bert", "qwen3", "phi3", "opt"])
def test_shapes_tell_what_autograd_keeps(name: str) -> None:
    model = small(name)
    told, outputs = saved_bytes(model.skeleton(), batch=3, size=20)
    assert told == pytest.approx(really_kept(model, batch=3, size=20), rel=0.05)
    assert outputs == 3 * 20 * model.spec.config["vocab_size"] * 4


def test_the_count_grows_with_the_batch_and_leaves_the_model_alone() -> None:
    model = small("llama").skeleton()
    one, two = (saved_bytes(model, batch=n, size=16)[0] for n in (1, 2))
    assert one < two <= 2 * one
    assert all(p.is_meta for p in model.module.parameters())
