"""timm modules whose buffers are computed when they are built, where their parameters are: saved and loaded whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from zoo_compress import apply

import zoo
from zoo.artifact.proof import computed_buffers
from zoo.data.dataset import Dataset, Sample
from zoo.model.context import Context

pytestmark = pytest.mark.quick

SWIN = "num_classes=10&img_size=64&embed_dim=24&depths=[2,2]&num_heads=[2,4]"
MODELS = {
    "swin": f"timm:swin_tiny_patch4_window7_224?{SWIN}&window_size=4",
    "swin v2": f"timm:swinv2_tiny_window8_256?{SWIN}&window_size=4",
    "swin v2 cr": f"timm:swinv2_cr_tiny_224?{SWIN}",
    "eva": "timm:eva02_tiny_patch14_224?num_classes=10&img_size=56&embed_dim=48&depth=2&num_heads=3",
    "beit": "timm:beit_base_patch16_224?num_classes=10&img_size=32&embed_dim=48&depth=2&num_heads=3",
    "levit": "timm:levit_128s?num_classes=10",
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
def test_it_comes_back_with_its_buffers(kind: str, dtype: str, tmp_path: Path):
    model = zoo.load(MODELS[kind], weights="random", dtype=dtype)
    again = zoo.load(model.save(tmp_path / "saved"))
    batch = model.family.example(model, batch=1)
    assert torch.equal(model.family.forward(model, batch), model.family.forward(again, batch))
    spec = model.spec.config
    theirs = timm.create_model(spec["architecture"], pretrained=False, **spec["model_args"]).to(getattr(torch, dtype))
    expected = {name: buffer.dtype for name, buffer in computed_buffers(theirs)}
    assert expected and {name: buffer.dtype for name, buffer in computed_buffers(again.module)} == expected


@pytest.mark.parametrize("use", ["train", "distill"])
@pytest.mark.parametrize("kind", ["swin v2", "swin v2 cr"])
def test_training_in_bfloat16_takes_the_computed_buffers_along(kind: str, use: str):
    """They are multiplied with parameters, which are trained in float32, and are as before afterwards."""
    model = zoo.load(MODELS[kind], weights="random", dtype="bfloat16")
    before = {name: buffer.clone() for name, buffer in computed_buffers(model.module)}
    picture = np.zeros((64, 64, 3), np.uint8)
    data = Dataset("d", [Sample({"image": picture, "label": i}, f"d:{i}") for i in range(2)])
    original = model.copy()
    context = Context(data={"train": data}, load=lambda _: original)
    apply(model, use, {"steps": 2, "batch": 1, "length": 2}, context=context)
    after = dict(computed_buffers(model.module))
    assert before and after.keys() == before.keys()
    assert all(
        after[name].dtype == buffer.dtype and torch.equal(after[name], buffer) for name, buffer in before.items()
    )


def test_a_buffer_that_a_class_computes_for_every_size_is_no_other_model(tmp_path: Path) -> None:
    """ConViT's distances between patches are of the latest image."""
    model = zoo.load("timm:convit_tiny?num_classes=4&img_size=64&embed_dim=24&depth=2&num_heads=2", weights="random")
    before = model.module.blocks[0].attn.rel_indices.shape  # type: ignore[union-attr, index]
    model.module(torch.zeros(1, 3, 64, 64))
    assert model.module.blocks[0].attn.rel_indices.shape != before  # type: ignore[union-attr, index]
    model.save(tmp_path / "saved")
    again = zoo.load(tmp_path / "saved")
    pictures = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.module(pictures), model.module(pictures))
