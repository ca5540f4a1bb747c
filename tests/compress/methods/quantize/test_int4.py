"""int4, and what it shares with int8: grids, methods and overrides of single layers; what else stages share is tested there."""

from __future__ import annotations

import pytest
import torch
from stages import apply, assert_outline_foretells, assert_replays, check, context, logits, options, small
from torch import nn
from twins import TWINS, tokens
from zoo_compress.calibrate.blocks import Unit
from zoo_compress.calibrate.statistics import Statistics, output_energy
from zoo_compress.calibrate.watch import batches, watch
from zoo_compress.methods.quantize.calibrated import INDEFINITE, UNREACHED, UnitSolver
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear
from zoo_compress.methods.quantize.int4 import QuantizeInt4
from zoo_compress.methods.quantize.solvers.gptq import DAMPINGS, factor, gptq
from zoo_compress.methods.quantize.solvers.grid import Grid
from zoo_compress.methods.quantize.solvers.hqq import hqq
from zoo_compress.methods.quantize.uniform import group_of

from zoo.anatomy.modules import weight_out_in
from zoo.errors import RecipeError, Refused, UnknownName
from zoo.model.context import Silent
from zoo.options import validated

DENSE = [name for name in TWINS if name != "mixtral"]
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name", DENSE)
def test_the_model_computes_with_the_codes_of_the_method(name):
    """The reference is the same twin in fp32 whose weights are what HQQ makes of them."""
    model, reference, ids = small(name), small(name), tokens()
    apply(model, "quantize.int4")
    for path, own in model.lineage[-1].record["grids"].items():
        module = reference.module.get_submodule(path)
        weight_OI = weight_out_in(module)
        group = weight_OI.shape[1] if own["group"] == "row" else own["group"]
        want_OI = hqq(weight_OI, Grid(4, group, symmetric=False)).weight()
        with torch.no_grad():
            module.weight.copy_(want_OI if isinstance(module, nn.Linear) else want_OI.T)
        assert torch.equal(model.module.get_submodule(path).dequantize(), want_OI)
    want = logits(reference, ids)
    # bf16 inputs and outputs of every layer
    torch.testing.assert_close(logits(model, ids), want, rtol=0.05, atol=0.02 * float(want.abs().max()))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("symmetric", [False, True])
def test_outline_foretells_and_a_saved_model_loads(name, symmetric, tmp_path):
    model = small(name)
    assert_outline_foretells(model, "quantize.int4", symmetric=symmetric, group="row" if symmetric else 32)
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.quick
def test_each_layer_follows_the_last_override_that_matches_it(tmp_path):
    model = small("llama-tied")
    overrides = [
        {"pattern": "*.mlp.*", "bits": 8},
        {"pattern": "*.down_proj", "group": 32, "method": "rounding"},
        {"pattern": "*.q_proj", "symmetric": True, "group": "row", "method": "rounding"},
    ]
    assert_outline_foretells(model, "quantize.int4", overrides=overrides, skip=("*.1.mlp.gate_proj",))
    block = model.module.model.layers[1]
    assert isinstance(block.mlp.gate_proj, nn.Linear)
    assert isinstance(block.mlp.up_proj, Int8Linear) and block.mlp.up_proj.scale.shape == (64,)
    assert isinstance(block.mlp.down_proj, Int8Linear) and block.mlp.down_proj.scale.shape == (32, 2)
    q, k = block.self_attn.q_proj, block.self_attn.k_proj
    assert isinstance(q, Int4Linear) and q.zero is None and isinstance(k, Int4Linear) and k.zero is not None
    details = {path: traits[0].detail for path, traits in model.state().items()}
    assert details[UP] == "8 bits" and details["model.layers.0.self_attn.q_proj"] == "4 bits"
    assert_replays(model, tokens(), tmp_path)


def test_tables_are_left_as_they_are_unless_asked_for(tmp_path):
    model = small("llama-tied")
    apply(model, "quantize.int4")
    assert isinstance(model.module.model.embed_tokens, nn.Embedding) and isinstance(model.module.lm_head, nn.Linear)
    model = small("llama-tied")
    apply(model, "quantize.int4", {"embedding": True})
    table, head = model.module.model.embed_tokens, model.module.lm_head
    assert isinstance(table, Int8Embedding) and isinstance(head, Int8Linear) and head.weight_int8 is table.weight_int8
    assert_replays(model, tokens(), tmp_path)


def test_a_group_that_does_not_divide_the_inputs_becomes_the_largest_that_does():
    assert [group_of(128, inputs) for inputs in (256, 576, 96, 40)] == [128, 64, 32, "row"]
    assert [group_of(size, 1024) for size in (32, 256, "row")] == [32, 256, "row"]


def test_zeros_of_pruned_weights_stay(tmp_path):
    model = small("llama")
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    before = model.module.get_submodule(UP).weight.detach().clone()
    apply(model, "quantize.int4")
    assert (model.module.get_submodule(UP).dequantize()[before == 0] == 0).all()
    assert_replays(model, tokens(), tmp_path)


def test_shared_and_factored_layers_are_packed(tmp_path):
    model = small("llama")
    apply(model, "share.ffn")
    apply(model, "lowrank.svd", {"rank": 6, "whiten": False, "target": "language.attention"})
    apply(model, "quantize.int4")
    first, second = model.module.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj and isinstance(first.mlp.up_proj, Int4Linear)
    assert isinstance(first.self_attn.q_proj.down, Int4Linear)
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("method", ["rounding", "hqq"])
def test_int8_takes_the_methods_and_groups_too(method, tmp_path):
    model = small("llama")
    assert_outline_foretells(model, "quantize.int8", method=method, group=32)
    layer = model.module.model.layers[0].mlp.down_proj
    assert isinstance(layer, Int8Linear) and layer.scale.shape == (32, 2)
    assert_replays(model, tokens(), tmp_path)


def test_an_odd_number_of_inputs_is_refused_and_the_remedy_works():
    with pytest.raises(
        Refused, match=r"down_proj has 63 inputs, and two 4-bit weights share a byte.*or give it 8 bits"
    ):
        check(small("llama", intermediate_size=63), "quantize.int4")
    eight = [{"pattern": "*.down_proj", "bits": 8}]
    check(small("llama", intermediate_size=63), "quantize.int4", overrides=eight)


def test_a_pattern_of_overrides_that_matches_nothing_is_refused():
    with pytest.raises(UnknownName, match=r"overrides: '\*.dwn_proj' matches no layer of the target"):
        check(small("llama"), "quantize.int4", overrides=[{"pattern": "*.dwn_proj", "bits": 8}])


def test_options_that_do_not_exist_are_named():
    with pytest.raises(RecipeError, match="group = 100: input should be"):
        validated(QuantizeInt4.Options, {"group": 100}, what="quantize.int4")
    with pytest.raises(RecipeError, match="overrides"):
        validated(QuantizeInt4.Options, {"overrides": [{"pattern": "*", "bit": 8}]}, what="quantize.int4")


def test_auto_is_settled_and_said():
    stage, model = QuantizeInt4(), small("llama")
    assert stage.resolved(options("quantize.int4"), ()).method == "hqq"
    assert stage.note(model, options("quantize.int4")).startswith(
        "Codes are chosen by HQQ, without data; with calibration data"
    )
    assert "HQQ" not in stage.note(model, options("quantize.int4", method="rounding"))


def test_a_recipe_of_one_line_is_w4a16_in_groups_of_128():
    model = small("llama", hidden_size=128, intermediate_size=256)
    for asked, symmetric in (({}, False), ({"symmetric": True}, True)):
        record = QuantizeInt4().outline(model, options("quantize.int4", **asked))
        kept = {(grid["bits"], grid["group"], grid["symmetric"]) for grid in record["grids"].values()}
        assert kept == {(4, 128, symmetric)} and model.anatomy.head not in record["modules"]


# --- with calibration data ------------------------------------------------------------------------------------------

CALIBRATION = {"samples": 16, "length": 64, "batch": 4, "group": 32}


def calibrated(name, method="awq+gptq", **values):
    model = small(name)
    apply(model, "quantize.int4", {"method": method, **CALIBRATION, **values}, context())
    return model


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "gemma2", "phi3", "mixtral", "gpt2", "gpt-neox", "opt", "bert"])
def test_calibrated_outlines_foretell_and_saved_models_load(name, tmp_path):
    model = small(name)
    assert_outline_foretells(model, "quantize.int4", method="awq+gptq", **CALIBRATION)
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_every_layer_loses_less_than_by_rounding_and_the_record_says_how_much(method):
    model = calibrated("llama", method)
    table = model.lineage[-1].record["layers"]
    assert table.keys() == model.lineage[-1].record["grids"].keys()
    for path, told in table.items():
        assert told["method"] == method and told["tokens"] == 16 * 64
        assert told["error"] < told["rounding_error"], path
        assert (told.get("damping") in DAMPINGS) == ("gptq" in method)
    if method != "gptq":
        assert all("alpha" in told for told in table.values())


def test_the_error_that_a_record_tells_is_that_of_the_outputs():
    """Of the first block's q, whose inputs nothing before it changed: from the inputs themselves."""
    model, before, path = small("llama"), small("llama"), "model.layers.0.self_attn.q_proj"
    apply(model, "quantize.int4", {"method": "gptq", **CALIBRATION}, context())
    data, read = batches(before, options("quantize.int4", **CALIBRATION), context(), stage="test"), []
    watch(before, data, {path: lambda x, *_: read.append(x.flatten(0, -2))})
    x_TI = torch.cat(read).double()
    weight_OI = before.module.get_submodule(path).weight.detach()
    other_OI = model.module.get_submodule(path).dequantize()
    error = (x_TI @ (weight_OI - other_OI).double().T).norm() / (x_TI @ weight_OI.double().T).norm()
    assert model.lineage[-1].record["layers"][path]["error"] == pytest.approx(float(error), rel=1e-3)


def test_methods_of_single_layers_and_of_8_bits_are_calibrated_too(tmp_path):
    overrides = [
        {"pattern": "*.mlp.*", "bits": 8, "method": "gptq"},
        {"pattern": "*.down_proj", "method": "rounding"},
        {"pattern": "*.o_proj", "method": "hqq"},
    ]
    model = calibrated("llama", overrides=overrides, embedding=True)
    table = model.lineage[-1].record["layers"]
    block = model.module.model.layers[0]
    assert isinstance(block.mlp.up_proj, Int8Linear) and isinstance(block.self_attn.q_proj, Int4Linear)
    assert isinstance(model.module.model.embed_tokens, Int8Embedding)
    methods = {
        name: table[f"model.layers.0.{name}"]["method"] for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
    }
    assert list(methods.values()) == ["gptq", "rounding", "hqq"]
    rounded = table["model.layers.0.mlp.down_proj"]
    assert rounded["error"] == rounded["rounding_error"] and table["model.layers.0.mlp.up_proj"]["error"] < 0.01
    assert_replays(model, tokens(), tmp_path)


def test_the_same_calibration_gives_the_same_bytes(tmp_path):
    one, other = (calibrated("llama").save(tmp_path / str(i)) / "model.safetensors" for i in range(2))
    assert one.read_bytes() == other.read_bytes()


def test_a_walk_that_was_stopped_goes_on_and_ends_alike(tmp_path):
    class Stopped(Exception):
        pass

    class Stopping(Silent):
        def track(self, items, *, total, label):
            for number, item in enumerate(items):
                if label == "quantize.int4" and number == 1:
                    raise Stopped
                yield item

    asked = {"method": "awq+gptq", **CALIBRATION}
    (tmp_path / "kept").mkdir()
    with pytest.raises(Stopped):
        apply(small("llama"), "quantize.int4", asked, context(checkpoint=tmp_path / "kept", progress=Stopping()))
    model, whole = small("llama"), calibrated("llama")
    apply(model, "quantize.int4", asked, context(checkpoint=tmp_path / "kept"))
    assert model.lineage[-1].record == whole.lineage[-1].record
    assert all(torch.equal(t, whole.module.state_dict()[name]) for name, t in model.module.state_dict().items())


def test_shared_layers_are_calibrated_once(tmp_path):
    model = small("llama")
    apply(model, "share.ffn")
    apply(model, "quantize.int4", {"method": "awq+gptq", **CALIBRATION}, context())
    first, second = model.module.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj and isinstance(first.mlp.up_proj, Int4Linear)
    assert UP in model.lineage[-1].record["layers"]
    assert UP.replace("0", "1") not in model.lineage[-1].record["layers"]
    assert_replays(model, tokens(), tmp_path)


def test_data_decides_what_auto_is_and_the_plan_says_so():
    stage, model = QuantizeInt4(), small("llama")
    found = stage.resolved(options("quantize.int4"), {"calibration"})
    assert (found.method, stage.roles(found)) == ("awq+gptq", ("calibration",))
    assert stage.note(model, found).startswith("Codes are chosen by AWQ and GPTQ on calibration data.")
    assert stage.roles(options("quantize.int4", method="hqq")) == ()
    eight = options("quantize.int4", method="hqq", overrides=[{"pattern": "*", "method": "gptq"}])
    assert stage.roles(eight) == ("calibration",)


@pytest.mark.parametrize(
    ("prune", "pattern"),
    [
        ("prune.wanda", {"sparsity": 0.5}),
        ("prune.sparsegpt", {"sparsity": 0.5}),
        ("prune.sparsegpt", {"pattern": "2:4"}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("stage", "method"), [("quantize.int4", "awq+gptq"), ("quantize.int8", "gptq")])
def test_what_was_pruned_before_stays_zero_and_patterns_whole(prune, pattern, stage, method):
    model = small("llama")
    apply(model, prune, {**pattern, "samples": 16, "length": 64}, context())
    before = {path: model.tensors()[f"{path}.weight"].detach().clone() for path in model.lineage[-1].record["paths"]}
    apply(model, stage, {"method": method, **CALIBRATION}, context())
    for path, pruned_OI in before.items():
        after_OI = model.module.get_submodule(path).dequantize()
        assert (after_OI[pruned_OI == 0] == 0).all() and (pruned_OI == 0).float().mean() >= 0.49
        if "pattern" in pattern:
            assert int((after_OI.reshape(-1, 4) != 0).sum(1).max()) <= 2
        told = model.lineage[-1].record["layers"][path]
        assert told["error"] < told["rounding_error"]


@pytest.mark.parametrize(
    ("rows", "shift", "fallback"), [(0, 0.0, UNREACHED), (64, -10.0, INDEFINITE)], ids=["unreached", "indefinite"]
)
def test_a_layer_without_a_gram_to_go_by_falls_back_and_says_so(rows, shift, fallback):
    layer, grid, seen = nn.Linear(32, 8), Grid(4, 32, symmetric=False), Statistics(("gram", "abssum"))
    seen.add(torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)))
    seen.gram += shift * seen.gram.diagonal().mean() * torch.eye(32)
    unit = Unit("0", {"0": seen}, table={"0": {}})
    codes = UnitSolver(nn.Sequential(layer), unit, {"0": (grid, "gptq")}).solve([])["0"]
    assert unit.table["0"]["fallback"] == fallback
    if fallback == UNREACHED:
        assert torch.equal(codes.codes, hqq(layer.weight.detach(), grid).codes)


@pytest.mark.parametrize("rows", [40, 4000])
def test_damping_is_the_one_that_loses_least_on_what_was_held_out(rows):
    """Of few tokens much, of many little; codes then go by all tokens."""
    draw, layer, grid = torch.Generator().manual_seed(0), nn.Linear(32, 24), Grid(4, 32, symmetric=False)
    nn.init.normal_(layer.weight, std=0.2, generator=draw)
    mixed_II = torch.randn(32, 32, generator=draw)
    seen, apart = (Statistics(("gram",)) for _ in range(2))
    for statistics, count in ((seen, rows), (apart, 4000)):
        statistics.add(torch.randn(count, 32, generator=draw) @ mixed_II)
    unit = Unit("0", {"0": seen}, {"0": apart}, {"0": {}})
    UnitSolver(nn.Sequential(layer), unit, {"0": (grid, "gptq")}).solve([])
    weight_OI, losses = layer.weight.detach(), {}
    for damping in DAMPINGS:
        codes = gptq(weight_OI, factor(seen.gram, damping), grid, hqq(weight_OI, grid, iterations=5).steps)
        losses[damping] = output_energy(weight_OI - codes.weight(), apart.gram)
    told = unit.table["0"]
    assert told["damping"] == min(losses, key=losses.get)
    assert (told["damping"] == DAMPINGS[0]) == (rows == 4000)
    assert told["tokens"] == rows + 4000


def test_scaling_leaves_what_is_scaled_as_it_was_together():
    """Of fp32 weights a copy was a view once, and value projections were divided twice."""
    ids, errors = tokens(), {}
    for method in ("rounding", "awq"):
        model = small("bert")
        before = logits(model, ids)
        apply(model, "quantize.int8", {"method": method, "embedding": False, **CALIBRATION}, context())
        errors[method] = float((logits(model, ids) - before).norm() / before.norm())
        alphas = [about.get("alpha", 0) for about in model.lineage[-1].record.get("layers", {}).values()]
    assert max(alphas) > 0
    assert errors["awq"] < 1.5 * errors["rounding"]
