"""Low rank: the nearest product of two thin matrices, in the weight or in the output."""

from __future__ import annotations

import math

import pytest
import torch
from stages import apply, assert_outline_foretells, assert_replays, check, context, logits, options, small, tokenizer
from torch import nn
from twins import TWINS, WIDTH, tokens
from zoo_compress.methods.lowrank import LowRankLinear, LowRankSVD, factor

import zoo
from zoo.errors import DataError, Refused, ZooError
from zoo.model.context import Context, Silent

DENSE = [name for name in TWINS if name != "mixtral"]
QUICK = {"length": 16, "samples": 16}


def weight_out_in(module):
    return module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T


def projections(model):
    return list(model.anatomy.select("language").projections())


@pytest.mark.parametrize("name", DENSE)
def test_outline_foretells_and_a_saved_model_loads(name, tmp_path):
    model = small(name)
    assert_outline_foretells(model, "lowrank.svd", ratio=0.6, **QUICK)
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("name", DENSE)
def test_detection_still_sees_every_projection(name):
    model = small(name)
    before = model.anatomy.stacks["language"]
    apply(model, "lowrank.svd", {"ratio": 0.5, "whiten": False})
    after = model.anatomy.stacks["language"]
    for block, was in zip(after.blocks, before.blocks, strict=True):
        assert block.attention.projections == was.attention.projections and block.attention.heads == was.attention.heads
        assert block.ffn.projections == was.ffn.projections and block.ffn.width == was.ffn.width
    assert (after.width, after.norms, after.head) == (before.width, before.norms, before.head)


@pytest.mark.quick
@pytest.mark.parametrize("name", DENSE)
def test_the_plain_cut_has_the_error_of_the_dropped_singular_values(name):
    """Eckart-Young, with singular values from the eigenvalues of W W^T; biases are kept as they are."""
    model = small(name)
    before = {path: model.module.get_submodule(path) for path in projections(model)}
    apply(model, "lowrank.svd", {"rank": 5, "whiten": False})
    for path, dense in before.items():
        layer = model.module.get_submodule(path)
        weight_OI = weight_out_in(dense).double()
        product_OI = layer.up.weight.detach().double() @ layer.down.weight.detach().double()
        values = torch.linalg.eigvalsh(weight_OI @ weight_OI.T).clamp_min(0).sqrt().sort(descending=True).values
        assert float((product_OI - weight_OI).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-5)
        assert layer.up.bias is dense.bias


@pytest.mark.quick
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_the_rank_follows_the_ratio(ratio):
    model = small("llama-gqa")
    before, record = model.params, LowRankSVD().outline(model, options("lowrank.svd", ratio=ratio))
    saved = 0
    for path, rank in record["ranks"].items():
        out, inputs = model.module.get_submodule(path).weight.shape
        assert rank == int(ratio * out * inputs // (out + inputs))
        saved += out * inputs - rank * (out + inputs)
    apply(model, "lowrank.svd", {"ratio": ratio, "whiten": False})
    assert before - model.params == saved


def test_full_rank_reproduces_the_weight():
    weight_OI = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    inputs_NI = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    for gram in (None, inputs_NI.T @ inputs_NI):
        up_OR, down_RI = factor(weight_OI, 16, gram)
        torch.testing.assert_close(up_OR @ down_RI, weight_OI.double(), rtol=0, atol=1e-10)


def test_the_sign_does_not_follow_the_sign_of_the_decomposition(monkeypatch):
    weight_OI = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    expected = factor(weight_OI, 3)
    svd = torch.linalg.svd

    def flipped(matrix, full_matrices):
        u, s, vt = svd(matrix, full_matrices=full_matrices)
        signs = torch.tensor([-1.0, 1.0] * 4, dtype=u.dtype)
        return u * signs, s, vt * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    assert all(torch.equal(a, b) for a, b in zip(factor(weight_OI, 3), expected, strict=True))


# --- whitening ------------------------------------------------------------------------------------------------------


def synthetic(seed):
    """A 256 x 256 layer; inputs of falling spectrum in a random basis, four channels loud; two halves of rows."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weight_OI = 0.02 * normal(256, 256)
    basis, _ = torch.linalg.qr(normal(256, 256))
    spectrum = torch.logspace(0, -1.5, 256, dtype=torch.float64)
    inputs_NI = normal(4096, 256) * spectrum.sqrt() @ basis.T
    inputs_NI[:, torch.randperm(256, generator=draw)[:4]] *= 10
    return weight_OI, inputs_NI[:2048], inputs_NI[2048:]


def output_error(weight_OI, factors, inputs_NI):
    up_OR, down_RI = factors
    return float((inputs_NI @ (weight_OI - up_OR @ down_RI).T).norm() / (inputs_NI @ weight_OI.T).norm())


@pytest.mark.parametrize("ratio", [0.8, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_whitening_beats_the_plain_cut_on_rows_it_has_not_seen(ratio, seed):
    weight_OI, seen_NI, unseen_NI = synthetic(seed)
    rank = math.floor(ratio * 256 * 256 / 512)
    plain = output_error(weight_OI, factor(weight_OI, rank), unseen_NI)
    whitened = output_error(weight_OI, factor(weight_OI, rank, seen_NI.T @ seen_NI), unseen_NI)
    assert whitened < 0.6 * plain


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_that_of_the_dropped_singular_values(seed):
    weight_OI, seen_NI, _ = synthetic(seed)
    factors = factor(weight_OI, 60, seen_NI.T @ seen_NI)
    dropped = torch.linalg.svdvals(seen_NI @ weight_OI.T)[60:].norm()  # of the outputs themselves
    absolute = output_error(weight_OI, factors, seen_NI) * float((seen_NI @ weight_OI.T).norm())
    assert absolute == pytest.approx(float(dropped), rel=1e-4)


def test_inputs_that_do_not_span_the_space_are_damped():
    weight_OI, seen_NI, _ = synthetic(0)
    few_NI = seen_NI[:40].clone()
    few_NI[:, 7] = 0.0
    factors = factor(weight_OI, 100, few_NI.T @ few_NI)
    assert all(bool(torch.isfinite(each).all()) for each in factors)
    assert output_error(weight_OI, factors, few_NI) < 1e-4


def test_grams_are_those_of_every_input_of_the_layer():
    """The reference keeps all inputs of one layer and multiplies once; outputs of the whole model are then compared."""
    model = small("gpt2")
    path = "transformer.h.1.mlp.c_proj"
    dense = model.module.get_submodule(path)
    kept = []
    handle = dense.register_forward_hook(lambda _m, args, _o: kept.append(args[0].reshape(-1, 128).double()))
    windows = model.family.windows(model, context().data["calibration"], length=16)
    for i in range(16):
        logits(model, windows[i * len(windows) // 16]["input_ids"][None])
    handle.remove()
    inputs_NI = torch.cat(kept)
    up_OR, down_RI = factor(dense.weight.detach().T, 6, inputs_NI.T @ inputs_NI)
    apply(model, "lowrank.svd", {"rank": 6, "target": "language.blocks[1]", **QUICK}, context())
    layer = model.module.get_submodule(path)
    product_OI = layer.up.weight.detach().double() @ layer.down.weight.detach().double()
    torch.testing.assert_close(product_OI, up_OR @ down_RI, rtol=1e-3, atol=1e-5)


def test_a_block_is_cut_on_what_the_cut_blocks_before_it_give():
    model, path = small("llama"), "model.layers.1.self_attn.q_proj"
    weight_OI, first = model.module.get_submodule(path).weight.detach().clone(), small("llama")
    apply(first, "lowrank.svd", {"ratio": 0.5, "target": "language.blocks[0]", **QUICK}, context())
    kept = []
    first.module.get_submodule(path).register_forward_hook(lambda _m, args, _o: kept.append(args[0].reshape(-1, 32)))
    windows = first.family.windows(first, context().data["calibration"], length=16)
    for i in range(16):
        logits(first, windows[i * len(windows) // 16]["input_ids"][None])
    inputs_NI = torch.cat(kept).double()
    apply(model, "lowrank.svd", {"ratio": 0.5, **QUICK}, context())
    layer = model.module.get_submodule(path)
    up_OR, down_RI = factor(weight_OI, layer.rank, inputs_NI.T @ inputs_NI)
    product_OI = layer.up.weight.detach().double() @ layer.down.weight.detach().double()
    torch.testing.assert_close(product_OI, up_OR @ down_RI, rtol=1e-3, atol=1e-5)
    assert 0 < model.lineage[-1].record["layers"][path]["error"] < 1


def test_a_shared_layer_is_factored_once_on_the_inputs_of_all_its_places(tmp_path):
    model, ids = small("llama"), tokens()
    apply(model, "share.ffn")
    apply(model, "lowrank.svd", {"ratio": 0.5, **QUICK}, context())
    first, second = (layer.mlp.up_proj for layer in model.module.model.layers)
    assert first is second and isinstance(first, LowRankLinear)
    assert_replays(model, ids, tmp_path)


def test_whitened_factors_follow_the_model_better_than_plain_ones():
    ids = context().data["calibration"]
    errors = {}
    for whiten in (False, True):
        model = small("llama")
        windows = model.family.windows(model, ids, length=16)
        batch = torch.stack([windows[i]["input_ids"] for i in range(16)])
        before = logits(model, batch)
        apply(model, "lowrank.svd", {"ratio": 0.6, "whiten": whiten, **QUICK}, context())
        errors[whiten] = float((logits(model, batch) - before).norm())
    assert errors[True] < errors[False]


def test_a_layer_that_no_input_reaches_is_cut_plainly(tmp_path):
    """A decoder alone has nothing to attend to across."""
    from transformers import BartConfig, BartForCausalLM

    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    BartForCausalLM(BartConfig(vocab_size=96, max_position_embeddings=64, is_decoder=True, **sizes)).save_pretrained(
        tmp_path
    )
    tokenizer().save_pretrained(tmp_path)
    model, said = zoo.load(tmp_path), Said()
    cross = "model.decoder.layers.1.encoder_attn.k_proj"
    up_OR, down_RI = factor(model.module.get_submodule(cross).weight, 8)
    apply(model, "lowrank.svd", {"rank": 8, **QUICK}, context(progress=said))
    layer = model.module.get_submodule(cross)
    assert torch.equal(layer.up.weight, up_OR.float()) and torch.equal(layer.down.weight, down_RI.float())
    unseen = model.lineage[-1].record["unseen"]
    assert len(unseen) == 8 and all("encoder_attn" in path for path in unseen)
    assert said.texts == [
        "lowrank.svd: the calibration data never reached 8 layers, such as model.decoder.layers.0.encoder_attn.q_proj, "
        "which are factored without whitening"
    ]
    assert_replays(model, tokens(), tmp_path)


class Said(Silent):
    def __init__(self):
        self.texts = []

    def say(self, text):
        self.texts.append(text)


def test_factoring_leaves_the_global_random_state():
    before = torch.get_rng_state()
    apply(small("llama"), "lowrank.svd", {"ratio": 0.6, **QUICK}, context())
    LowRankLinear(8, 4, 2, bias=True)
    assert torch.equal(torch.get_rng_state(), before)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_rank_that_saves_nothing_is_refused_with_numbers():
    with pytest.raises(Refused, match=r"rank 16 of .*q_proj \(32, 32\) takes 1,024 weights, and the matrix has 1,024"):
        check(small("llama"), "lowrank.svd", rank=16)
    with pytest.raises(Refused, match="The largest rank that saves is 15"):
        check(small("llama"), "lowrank.svd", rank=99)
    check(small("llama"), "lowrank.svd", rank=15)


def test_a_ratio_that_leaves_no_rank_is_refused():
    with pytest.raises(Refused, match=r"ratio = 0.05 leaves .* no rank at all; rank 1 is 0.062 of it"):
        check(small("llama"), "lowrank.svd", ratio=0.05)


def test_each_expert_in_one_tensor_is_factored_on_the_tokens_it_received(tmp_path):
    model, plain = small("mixtral"), small("mixtral")
    before = logits(plain, tokens())
    assert_outline_foretells(model, "lowrank.svd", ratio=0.5, **QUICK)
    record = model.lineage[-1].record
    assert len(record["ranks"]) == 2 * (4 + 2 * 4) and [kept["kind"] for kept in record["left_as_is"]] == ["routers"]
    assert_replays(model, tokens(), tmp_path)
    apply(plain, "lowrank.svd", {"ratio": 0.5, "whiten": False, "target": "language.ffn"})
    apply(whitened := small("mixtral"), "lowrank.svd", {"ratio": 0.5, "target": "language.ffn", **QUICK}, context())
    lost, less = ((logits(made, tokens()) - before).norm() for made in (plain, whitened))
    assert less < lost


def test_a_gate_too_small_for_the_rank_stays_and_the_record_says_so():
    model = small("llama")
    for layer in model.module.model.layers:
        layer.gate = nn.Linear(WIDTH, 2)
    apply(model, "lowrank.svd", {"rank": 4, "whiten": False}, context())
    (kept,) = model.lineage[-1].record["left_as_is"]
    assert kept["kind"] == "matrices too small for that rank" and kept["names"] == ["*.layers.*.gate"]


@pytest.mark.parametrize(
    ("stage", "values", "says"),
    [
        ("quantize.int8", {}, r"is packed .* Put lowrank.svd before quantize.int8"),
        ("prune.magnitude", {"sparsity": 0.5}, r"is sparse .* Use one of them, or give each a target"),
        ("lowrank.svd", {"rank": 4, "whiten": False}, r"is factored \(rank 4\)"),
    ],
)
def test_layers_that_are_not_dense_are_refused(stage, values, says):
    model = small("llama")
    apply(model, stage, values)
    with pytest.raises(Refused, match=says):
        check(model, "lowrank.svd", ratio=0.5)


def test_whitening_needs_calibration_data():
    with pytest.raises(DataError, match=r"lowrank.svd needs calibration data"):
        apply(small("llama"), "lowrank.svd", {"ratio": 0.5}, Context())
    assert LowRankSVD().roles(options("lowrank.svd", ratio=0.5)) == ("calibration",)
    assert LowRankSVD().roles(options("lowrank.svd", ratio=0.5, whiten=False)) == ()


def test_a_weight_that_is_not_finite_is_named():
    model = small("llama")
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        ZooError,
        match=r"lowrank.svd: model.layers.1.mlp.up_proj.weight \(64, 32\) holds 1 value that is not finite, the first \(nan\) at \[0, 0\]",
    ):
        apply(model, "lowrank.svd", {"ratio": 0.5, "whiten": False})


@pytest.mark.parametrize("scale", [1e-20, 1e-40, 1e-100, 1e-150])
def test_inputs_that_hardly_vary_give_factors_that_float32_holds(scale):
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(100, 16, dtype=torch.float64, generator=generator)
    x_NI[:, 3] *= scale
    x_NI[:, 7] = x_NI[:, 6] + x_NI[:, 7] * scale
    weight_OI = torch.randn(24, 16, generator=generator)
    up_OR, down_RI = (part.float() for part in factor(weight_OI, 11, x_NI.T @ x_NI))
    assert float(up_OR.abs().max()) < 100 and float(down_RI.abs().max()) < 100
    whole_NO = x_NI @ weight_OI.double().T
    lost = (x_NI @ (up_OR @ down_RI).double().T - whole_NO).norm() / whole_NO.norm()
    assert float(lost) == pytest.approx(float(torch.linalg.svd(whole_NO)[1][11:].norm() / whole_NO.norm()), rel=1e-3)


@pytest.mark.parametrize("values", [{}, {"ratio": 0.5, "rank": 4}])
def test_ratio_or_rank_but_not_both(values):
    with pytest.raises(ValueError, match=r"give either ratio, such as 0.6, or rank"):
        LowRankSVD.Options(**values)
