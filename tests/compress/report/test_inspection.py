"""What `zoo inspect` says of a model's parts, and of what was done to them."""

from __future__ import annotations

from pathlib import Path

import zoo_compress
from snapgen.pipelines import snapgen
from zoo_compress.report.inspection import describe


def test_layers_outside_blocks_are_listed_with_what_was_done_to_them(tmp_path: Path) -> None:
    model = snapgen()
    zoo_compress.apply(model, "quantize.int8", {"target": "decoder"})
    found = describe(str(model.save(tmp_path / "model")))
    layers = {one["name"]: one for one in found["layers"]}
    assert layers.keys() == model.anatomy.layers.keys()
    assert layers["decoder"]["traits"] == "packed (8 bits)" and layers["unet.mid"]["traits"] == ""


def test_traits_of_cross_attention_are_seen(tmp_path: Path) -> None:
    model = snapgen()
    zoo_compress.apply(model, "prune.magnitude", {"target": "unet.mid.attention", "sparsity": 0.5})
    found = describe(str(model.save(tmp_path / "model")))
    stacks = {stack["name"]: stack["blocks"] for stack in found["stacks"]}
    assert all(block["traits"] == "sparse (50%)" for block in stacks["unet.mid"])
    assert all(block["traits"] == "" for block in stacks["text_encoder"])
