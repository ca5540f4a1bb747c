"""Wanda and SparseGPT as stages: every layer by what it reads once the blocks before it are pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import apply, assert_replays, context, options, small
from twins import TWINS, tokens
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.experts import listed, table_of
from zoo_compress.methods.prune.magnitude import magnitude_pruned
from zoo_compress.methods.prune.sparsegpt import PruneSparseGPT, inverse_factor, sparsegpt_pruned
from zoo_compress.methods.prune.wanda import PruneWanda, wanda_pruned

from zoo.model.building import cast_parameters
from zoo.model.model import Model

FEW = {"samples": 8, "length": 16}
STAGES: dict[str, dict[str, Any]] = {
    "prune.wanda": {"sparsity": 0.5, **FEW},
    "prune.sparsegpt": {"pattern": "2:4", **FEW},
}


def pruned(name: str, use: str, **changes: Any) -> Model:
    model = small(name)
    apply(model, use, {**STAGES[use], **changes}, context())
    return model


def gram(model: Model, path: str, **few: int) -> torch.Tensor:
    """Of what a layer of this model reads on the calibration windows, by a hook of our own."""
    inputs: list[torch.Tensor] = []
    handle = model.module.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for batch in batches(model, CalibrationOptions(**{**FEW, **few}), context(), stage="test"):
        model.family.forward(model, batch)
    handle.remove()
    x_NI = torch.cat([x.flatten(0, -2) for x in inputs]).double()
    return x_NI.T @ x_NI


def weight(model: Model, path: str) -> torch.Tensor:
    return model.module.get_submodule(path).weight.detach()  # type: ignore[union-attr, return-value]


@pytest.mark.quick
@pytest.mark.parametrize("use", STAGES)
def test_a_layer_is_pruned_by_what_the_pruned_blocks_before_it_give(use: str) -> None:
    """What the first layers of a block read in the pruned model is what they were pruned by."""
    model, original = pruned("llama", use), small("llama")
    for path in ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.q_proj"):
        seen_II = gram(model, path)
        if use == "prune.wanda":
            expected = wanda_pruned(weight(original, path), seen_II.diagonal(), 0.5)
        else:
            factor = inverse_factor(seen_II)
            assert factor is not None
            expected = sparsegpt_pruned(weight(original, path), factor, 0.5, (2, 4))
        torch.testing.assert_close(weight(model, path), expected, rtol=1e-5, atol=1e-7)
    stale = gram(original, "model.layers.1.self_attn.q_proj")
    assert not torch.allclose(stale, seen_II, rtol=1e-3)


@pytest.mark.parametrize("use", STAGES)
def test_the_record_says_how_far_off_each_layer_is(use: str) -> None:
    model, original = pruned("llama", use), small("llama")
    path = "model.layers.1.self_attn.q_proj"
    row = model.lineage[-1].record["layers"][path]
    seen_II, before = gram(model, path), weight(original, path).double()
    groups = (2, 4) if use == "prune.sparsegpt" else None

    def error(after: torch.Tensor) -> float:
        lost = before - after.double()
        return float(((lost @ seen_II * lost).sum() / (before @ seen_II * before).sum()).sqrt())

    assert row["tokens"] == 8 * 16
    assert row["error"] == pytest.approx(error(weight(model, path)), rel=1e-3)
    assert row["magnitude_error"] == pytest.approx(error(magnitude_pruned(before, 0.5, groups)), rel=1e-3)
    assert row.get("damping") == (0.01 if use == "prune.sparsegpt" else None)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("use", STAGES)
def test_everything_else_stays_and_a_saved_model_loads(name: str, use: str, tmp_path: Any) -> None:
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.tensors().items()}
    foretold = assert_foretold(model, use)
    for path, row in model.lineage[-1].record["layers"].items():
        # Wanda promises nothing where all inputs are alike, as in a model of random weights
        assert use == "prune.wanda" or row.get("fallback") or row["error"] < row["magnitude_error"], path
    for key, tensor in model.tensors().items():
        if key.removesuffix(".weight") not in foretold and key not in foretold:
            assert torch.equal(tensor, before[key]), key
    assert_replays(model, tokens(), tmp_path)


def assert_foretold(model: Model, use: str) -> list[str]:
    """Apply; what was foretold is what the record says, beside the table of the layers."""
    from zoo import registry

    foretold = registry.compressor(use).outline(model, options(use, **STAGES[use]))
    apply(model, use, STAGES[use], context())
    record = dict(model.lineage[-1].record)
    layers = record.pop("layers")
    lists = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert record == foretold and {table_of(lists, path) for path in layers} == set(foretold["paths"])
    return foretold["paths"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("use", STAGES)
def test_a_fused_projection_has_a_count_for_each_of_its_parts(use: str) -> None:
    model = small("phi3")
    attention = model.anatomy.stacks["language"].blocks[0].attention
    assert attention is not None
    rows = model.module.get_submodule(attention.q.path).weight  # type: ignore[union-attr]
    split = attention.heads * attention.head_dim
    with torch.no_grad():
        rows[:split] *= 100  # type: ignore[index]
    apply(model, use, {**STAGES[use], "sparsity": 0.5, "pattern": "unstructured"}, context())
    assert int((rows[:split] == 0).sum()) == split * rows.shape[1] // 2  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("use", STAGES)
def test_experts_in_one_tensor_are_pruned_by_the_tokens_that_reach_each(use: str) -> None:
    model, original = small("mixtral"), small("mixtral")
    apply(model, use, {**STAGES[use], "samples": 16}, context())
    seen = listed(original)  # nothing before the first block was changed
    rows = model.lineage[-1].record["layers"]
    for number in range(4):
        path = f"model.layers.0.mlp.experts.{number}.gate_up_proj"
        read_II = gram(seen, path, samples=16)
        before, after = (
            each.tensors()["model.layers.0.mlp.experts.gate_up_proj"][number, :64] for each in (original, model)
        )
        if use == "prune.wanda":
            expected = wanda_pruned(before, read_II.diagonal(), 0.5)
        else:
            factor = inverse_factor(read_II)
            assert factor is not None
            expected = sparsegpt_pruned(before, factor, 0.5, (2, 4))
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)
        assert rows[path]["tokens"] > 0 and "magnitude_error" in rows[path]


@pytest.mark.parametrize("use", STAGES)
def test_a_shared_layer_is_pruned_once_by_all_that_it_reads(use: str) -> None:
    model = small("llama")
    apply(model, "share.ffn")
    apply(model, use, STAGES[use], context())
    rows = model.lineage[-1].record["layers"]
    assert rows["model.layers.0.mlp.up_proj"]["tokens"] == 2 * 8 * 16 and "model.layers.1.mlp.up_proj" not in rows
    shared = weight(model, "model.layers.1.mlp.up_proj")
    assert int((shared == 0).sum()) == shared.numel() // 2
    assert "model.layers.1.mlp.up_proj" in model.state()


@pytest.mark.parametrize("use", STAGES)
def test_inputs_that_are_always_zero_leave_magnitude(use: str) -> None:
    model, original = small("llama"), small("llama")
    for other in (model, original):
        torch.nn.init.zeros_(other.module.model.layers[1].post_attention_layernorm.weight)  # type: ignore[union-attr, index, arg-type]
    apply(model, use, STAGES[use], context())
    path = "model.layers.1.mlp.up_proj"
    row = model.lineage[-1].record["layers"][path]
    assert row["fallback"] == "magnitude" and row["error"] == 0 and row["dead"] == 32
    groups = (2, 4) if use == "prune.sparsegpt" else None
    assert torch.equal(weight(model, path), magnitude_pruned(weight(original, path), 0.5, groups))


@pytest.mark.parametrize("use", STAGES)
def test_half_precision_and_the_same_bytes_every_time(use: str, tmp_path: Any) -> None:
    made = []
    for _ in range(2):
        model = small("llama")
        cast_parameters(model.module, torch.bfloat16)
        model.dtype = model.stored = "bfloat16"
        apply(model, use, STAGES[use], context())
        made.append(model)
    for key, tensor in made[0].tensors().items():
        assert torch.equal(tensor, made[1].tensors()[key]), key
    assert made[0].lineage[-1].record == made[1].lineage[-1].record
    up = weight(made[0], "model.layers.0.mlp.up_proj")
    assert up.dtype == torch.bfloat16 and int((up == 0).sum()) == up.numel() // 2
    assert_replays(made[0], tokens(), tmp_path)


def test_what_they_ask_for_and_declare() -> None:
    for stage in (PruneWanda(), PruneSparseGPT()):
        chosen = options(stage.name, pattern="2:4")
        assert stage.roles(chosen) == ("calibration",)
        model = small("llama")
        assert stage.working_bytes(model, chosen, context()) > 0
        traits = stage.traits(stage.outline(model, chosen))
        assert {(trait.kind, trait.detail) for trait in traits.values()} == {("sparse", "2:4")}
        assert "does not shrink" in stage.note(model, chosen)


class Stops:
    """Ends the run when the walk comes to its second unit."""

    def track(self, items: Any, *, total: int, label: str) -> Any:
        for number, item in enumerate(items):
            if label.startswith("prune.") and ":" not in label and number == 1:
                raise KeyboardInterrupt
            yield item

    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    ("use", "values"),
    [
        *STAGES.items(),
        ("prune.structured", {"ffn": 0.25, "heads": 2, "importance": "activation", "samples": 8, "length": 16}),
    ],
)
def test_a_walk_that_was_stopped_goes_on_to_the_same_bytes(use: str, values: dict[str, Any], tmp_path: Any) -> None:
    whole, stopped, resumed = small("llama-gqa"), small("llama-gqa"), small("llama-gqa")
    apply(whole, use, values, context())
    with pytest.raises(KeyboardInterrupt):
        apply(stopped, use, values, context(progress=Stops(), checkpoint=tmp_path))
    assert list(tmp_path.glob("unit-*.safetensors"))
    apply(resumed, use, values, context(checkpoint=tmp_path))
    assert resumed.lineage[-1].record == whole.lineage[-1].record
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[key]), key
