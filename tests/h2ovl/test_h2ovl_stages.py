"""Compression of tower, projector and language model: what was changed runs, and loads again bit for bit."""

from __future__ import annotations

import pytest
import torch
from toy_vlm import records, toy
from zoo_compress import apply

import zoo
from zoo.model.context import Context

CALIBRATION = {"samples": 4, "length": 128}
TRAINING = {"steps": 2, "batch": 2, "length": 128, "warmup": 1}
CHAINS = {
    "tower: fewer blocks, narrower": [
        ("inherit", {"target": "vision", "layers": "first:1"}),
        ("prune.structured", {"target": "vision", "ffn": 0.5}),
    ],
    "tower: heads": [("prune.structured", {"target": "vision", "heads": 0.5})],
    "tower: by graph": [("prune.structured", {"target": "vision", "ratio": 0.5})],
    "language: heads": [("prune.structured", {"target": "language", "heads": 0.5})],
    "language: by activation": [
        ("prune.structured", {"target": "language", "ffn": 0.5, "importance": "activation", **CALIBRATION})
    ],
    "language: influence": [
        ("inherit", {"target": "language", "layers": "influence:1", "keep_ends": False, **CALIBRATION})
    ],
    "everything shared, then 8 bits": [("share.ffn", {"target": "all"}), ("quantize.int8", {"target": "all"})],
    "projector: 8 bits": [("quantize.int8", {"target": "projector"})],
    "tower: 4 bits": [("quantize.nf4", {"target": "vision"})],
    "everything: low rank": [("lowrank.svd", {"target": "all", "ratio": 0.5, **CALIBRATION})],
    "language: sparse, distilled": [
        ("prune.magnitude", {"target": "language", "sparsity": 0.5}),
        ("distill", TRAINING),
    ],
    "projector alone trained": [("train", {**TRAINING, "only": ["projector"]})],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_compressed_model_runs_and_loads_again_exactly(name, tmp_path):
    model, original = toy(), toy()
    context = Context(data={"train": records(), "calibration": records()}, load=lambda _: original)
    for use, options in CHAINS[name]:
        apply(model, use, options, context)
    batch = model.family.example(model)
    logits = model.family.forward(model, batch)
    assert torch.isfinite(logits).all()
    assert isinstance(model.generate("What?", images=[records()[1].fields["image"]], max_new_tokens=3), str)
    saved = zoo.load(model.save(tmp_path / "saved"))
    assert torch.equal(saved.family.forward(saved, batch), logits)


@pytest.mark.quick
def test_training_the_projector_alone_changes_nothing_else():
    model, before = toy(), toy()
    apply(model, "train", {**TRAINING, "only": ["projector"]}, Context(data={"train": records()}))
    changed = {name.split(".")[0] for name, t in model.tensors().items() if not torch.equal(t, before.tensors()[name])}
    assert changed == {"projector"}
