"""The refit of what reads a cut: nearest by least squares, kept only where batches that were held out say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import apply, assert_replays, context, logits, small
from synthetic_layer import synthetic_layer
from twins import tokens
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.methods.prune.refit import DAMPING, contributions, refitted
from zoo_compress.methods.prune.structured import PruneStructured

from zoo.model.model import Model

CALIBRATED: dict[str, Any] = {"importance": "activation", "samples": 8, "length": 16}


def test_refitted_columns_are_the_damped_least_squares_solution() -> None:
    """The reference solves || X W^T - X_K V^T ||^2 + damping || V - W_K ||^2 from the rows themselves."""
    layer = synthetic_layer(0, out=24, inputs=48, tokens=400)
    kept = torch.arange(0, 48, 2)
    x, weight = layer.calibration, layer.weight
    damping = DAMPING * x.square().sum(0).mean()
    left = torch.cat([x[:, kept], damping.sqrt() * torch.eye(24, dtype=x.dtype)])
    right = torch.cat([x @ weight.T, damping.sqrt() * weight[:, kept].T])
    expected = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(refitted(weight, layer.gram, kept), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_a_better_score_and_the_refit_each_lower_the_error_of_what_is_new(seed: int) -> None:
    """A quarter of the inputs go: by their activations alone, by what the layer puts out for them, and with the refit."""
    layer = synthetic_layer(seed)
    weight, gram = layer.weight * torch.linspace(0.2, 3, 256, dtype=torch.float64), layer.gram
    scores = gram.diagonal(), contributions(weight, gram, torch.arange(256)[:, None])
    errors = []
    for score in scores:
        kept = score.argsort(descending=True)[:192].sort().values
        cut = torch.zeros_like(weight)
        cut[:, kept] = weight[:, kept]
        errors.append(float((layer.test @ (weight - cut).T).norm() / (layer.test @ weight.T).norm()))
    cut[:, kept] = refitted(weight, gram, kept)
    errors.append(float((layer.test @ (weight - cut).T).norm() / (layer.test @ weight.T).norm()))
    assert errors[0] > errors[1] > errors[2]


def test_a_head_contributes_what_its_slice_puts_out() -> None:
    layer = synthetic_layer(1, out=16, inputs=24, tokens=64)
    score = contributions(layer.weight, layer.gram, torch.arange(24).view(4, 6))
    for head in range(4):
        part = slice(6 * head, 6 * head + 6)
        expected = (layer.calibration[:, part] @ layer.weight[:, part].T).square().sum()
        torch.testing.assert_close(score[head], expected)


def redundant() -> Model:
    """A model whose channels come in pairs that do the same, each with a weight of its own in down."""
    model = small("llama")
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        with torch.no_grad():
            for name in ("gate_proj", "up_proj"):
                for rows in getattr(layer.mlp, name).parameters():  # type: ignore[union-attr]
                    rows[1::2] = rows[::2]
            layer.mlp.down_proj.weight[:, 1::2] *= 0.3  # so that of a pair this one goes  # type: ignore[union-attr, operator]
    return model


@pytest.mark.quick
def test_channels_that_stay_take_over_from_those_that_go(tmp_path: Any) -> None:
    before = logits(redundant(), tokens())
    far = {}
    for refit in (True, False):
        model = redundant()
        apply(model, "prune.structured", {"ffn": 0.25, "refit": refit, **CALIBRATED}, context())
        far[refit] = float((logits(model, tokens()) - before).norm() / before.norm())
        rows = model.lineage[-1].record["layers"]
        assert set(rows) == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
        for row in rows.values():
            assert row.get("refit", False) is refit and "kept" not in row
            assert not refit or row["error"] < 0.5 * row["error_without_refit"]
        assert_replays(model, tokens(), tmp_path / str(refit))
    assert far[True] < 0.5 * far[False]


def test_a_refit_that_held_out_batches_speak_against_is_dropped() -> None:
    """Three tokens say nothing of 64 channels: what is fitted to them is worse elsewhere, and the cut columns stay as they were."""
    model, original = small("llama"), small("llama")
    few = {"importance": "activation", "samples": 4, "length": 2}
    apply(model, "prune.structured", {"ffn": 0.5, **few}, context())
    rows = model.lineage[-1].record["layers"]
    assert {row["refit"] for row in rows.values()} >= {False}
    for path, row in rows.items():
        assert row["error"] == min(row["error"], row["error_without_refit"])
        whole, left = (m.module.get_submodule(path).weight for m in (original, model))
        same = all(bool((whole == column[:, None]).all(0).any()) for column in left.T)  # type: ignore[union-attr, operator]
        assert same is not row["refit"]


def test_errors_are_those_of_the_batches_held_out() -> None:
    """The last quarter of the windows, by hooks of our own on the first layer, which nothing before it changes."""
    model, original = small("opt"), small("opt")
    apply(model, "prune.structured", {"ffn": 0.5, **CALIBRATED}, context())
    path = "model.decoder.layers.0.fc2"
    row = model.lineage[-1].record["layers"][path]
    inputs: dict[str, list[torch.Tensor]] = {"whole": [], "cut": []}
    weights = {}
    for name, other in (("whole", original), ("cut", model)):
        layer = other.module.get_submodule(path)
        weights[name] = layer.weight.detach().double()  # type: ignore[union-attr, operator]
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0].detach().double()))
        options = CalibrationOptions(samples=8, length=16, batch=1)
        for batch in batches(other, options, context(), stage="test")[6:]:
            other.family.forward(other, batch)
    puts_out = {name: torch.cat([x.flatten(0, -2) for x in inputs[name]]) @ weights[name].T for name in weights}
    error = (puts_out["whole"] - puts_out["cut"]).norm() / puts_out["whole"].norm()
    assert row["error"] == pytest.approx(float(error), rel=1e-3) and row["tokens"] == 6 * 16


def test_heads_are_refitted_too() -> None:
    model = small("llama-gqa")
    apply(model, "prune.structured", {"heads": 2, **CALIBRATED}, context())
    rows = model.lineage[-1].record["layers"]
    assert set(rows) == {f"model.layers.{i}.self_attn.o_proj" for i in range(2)}
    assert all(row["error"] <= row["error_without_refit"] for row in rows.values())


def test_a_shared_layer_is_refitted_once(tmp_path: Any) -> None:
    model = small("llama")
    apply(model, "share.ffn")
    apply(model, "prune.structured", {"ffn": 0.25, **CALIBRATED}, context())
    (row,) = model.lineage[-1].record["layers"].values()
    assert row["tokens"] == 2 * 6 * 16
    assert_replays(model, tokens(), tmp_path)


def test_the_same_bytes_every_time() -> None:
    made = []
    for _ in range(2):
        model = small("gpt2")
        apply(model, "prune.structured", {"ffn": 0.25, "heads": 2, **CALIBRATED}, context())
        made.append(model)
    assert made[0].lineage[-1].record == made[1].lineage[-1].record
    for key, tensor in made[0].tensors().items():
        assert torch.equal(tensor, made[1].tensors()[key]), key


def test_one_batch_refits_nothing_and_says_so() -> None:
    said: list[str] = []

    class Told:
        def track(self, items: Any, *, total: int, label: str) -> Any:
            yield from items

        def say(self, text: str) -> None:
            said.append(text)

    model = small("llama")
    one = {"importance": "activation", "samples": 1, "length": 16}
    apply(model, "prune.structured", {"ffn": 0.25, **one}, context(progress=Told()))
    assert any("nothing is refitted" in text for text in said)
    assert all("refit" not in row for row in model.lineage[-1].record["layers"].values())


@pytest.mark.parametrize(
    ("values", "roles", "settled"),
    [
        ({"ffn": 0.5}, ("calibration",), ("activation", True)),
        ({"ffn": 0.5}, (), ("magnitude", False)),
        ({"ffn": 0.5, "refit": False}, ("calibration",), ("activation", False)),
        ({"ffn": 0.5, "refit": True}, (), ("activation", True)),  # then the plan asks for the data
        ({"ffn": 0.5, "importance": "magnitude"}, ("calibration",), ("magnitude", False)),
        ({"ratio": 0.5}, ("calibration",), ("magnitude", False)),
    ],
)
def test_refit_is_settled_by_the_data_there_is(
    values: dict[str, Any], roles: tuple[str, ...], settled: tuple[str, bool]
) -> None:
    chosen = PruneStructured().resolved(PruneStructured.Options(**values), roles)
    assert (chosen.importance, chosen.refit) == settled


@pytest.mark.parametrize("values", [{"ffn": 0.5, "importance": "magnitude"}, {"ratio": 0.5}])
def test_a_refit_without_activations_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refit goes by activations on calibration data"):
        PruneStructured.Options(refit=True, **values)
