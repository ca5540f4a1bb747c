"""int8: every projection, table and head packed; what was shared stays shared."""

from __future__ import annotations

import pytest
import torch
from stages import apply, assert_outline_foretells, assert_replays, check, context, exact, logits, options, small
from torch import nn
from twins import TWINS, tokens
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear
from zoo_compress.methods.quantize.formats.w8a8_layers import W8A8Linear
from zoo_compress.methods.quantize.int8 import QuantizeInt8

import zoo
from zoo.errors import Refused, UnknownName, ZooError
from zoo.model.building import cast_parameters

DENSE = [name for name in TWINS if name != "mixtral"]
TIED = ["llama-tied", "qwen2", "gemma2", "gpt2", "opt", "bert", "falcon"]


def rounded(weight, axis):
    """Each row to the nearest of 255 steps of its largest entry / 127: the definition, in double."""
    scale = weight.double().abs().amax(dim=axis, keepdim=True).float().double() / 127
    return ((weight.double() / scale).round() * scale).to(weight.dtype)


@pytest.mark.parametrize("name", DENSE)
def test_the_model_computes_with_the_rounded_weights(name):
    """The reference is the same twin in fp32 with every packed weight rounded by the definition."""
    model, reference, ids = small(name), small(name), tokens()
    apply(model, "quantize.int8")
    tables = {id(reference.module.get_submodule(reference.anatomy.embedding).weight)}
    done = set()
    for path in model.lineage[-1].record["modules"]:
        module = reference.module.get_submodule(path)
        if id(module.weight) in done:
            continue
        done.add(id(module.weight))
        transposed = not isinstance(module, nn.Linear) and id(module.weight) not in tables
        with torch.no_grad():
            module.weight.copy_(rounded(module.weight, 0 if transposed else 1))
    torch.testing.assert_close(logits(exact(model), ids), logits(reference, ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_outline_foretells_and_a_saved_model_loads(name, tmp_path):
    model = small(name)
    assert_outline_foretells(model, "quantize.int8")
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("name", DENSE)
def test_a_tied_head_is_still_known_as_such(name):
    model = small(name)
    apply(model, "quantize.int8")
    assert model.anatomy.tied == model.skeleton().anatomy.tied == (name in TIED)


@pytest.mark.parametrize("name", DENSE)
def test_parameters_stay_and_bytes_shrink(name):
    model = small(name)
    params, before = model.params, model.bytes
    apply(model, "quantize.int8")
    assert model.params == params
    assert model.bytes < 0.45 * before


@pytest.mark.quick
@pytest.mark.parametrize("name", TIED)
def test_a_tied_head_reads_the_buffers_of_the_table(name):
    model = small(name)
    anatomy = model.anatomy
    bias = model.module.get_submodule(anatomy.head).bias
    apply(model, "quantize.int8")
    table, head = (model.module.get_submodule(path) for path in (anatomy.embedding, anatomy.head))
    assert isinstance(table, Int8Embedding) and isinstance(head, Int8Linear)
    assert table.weight_int8 is head.weight_int8 and table.scale is head.scale
    assert head.bias is bias
    assert model.aliases()[f"{anatomy.head}.weight_int8"] == f"{anatomy.embedding}.weight_int8"


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_an_untied_head_is_packed_on_its_own(name):
    model = small(name)
    anatomy = model.anatomy
    apply(model, "quantize.int8")
    table, head = (model.module.get_submodule(path) for path in (anatomy.embedding, anatomy.head))
    assert table.weight_int8 is not head.weight_int8
    assert not torch.equal(table.dequantize(), head.dequantize())


def test_a_scaled_table_keeps_its_scale_and_its_head_does_not_get_it():
    model = small("gemma2")
    ids = tokens()
    before = model.module.model.embed_tokens(ids)
    apply(model, "quantize.int8")
    after = model.module.model.embed_tokens(ids)
    torch.testing.assert_close(after, before, rtol=0, atol=float(before.detach().abs().max()) / 200)


def test_tables_can_be_left_as_they_are(tmp_path):
    model = small("llama-tied")
    apply(model, "quantize.int8", {"embedding": False})
    assert isinstance(model.module.model.embed_tokens, nn.Embedding)
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize(
    ("target", "tables"), [("language", True), ("language.ffn", False), ("language.blocks[1:]", False)]
)
def test_tables_go_with_the_whole_stack_only(target, tables):
    model = small("llama")
    apply(model, "quantize.int8", {"target": target})
    modules = model.lineage[-1].record["modules"]
    assert ("lm_head" in modules) is tables and ("model.embed_tokens" in modules) is tables
    assert ("model.layers.0.mlp.up_proj" in modules) is (target != "language.blocks[1:]")


def test_linears_around_the_blocks_are_packed_too():
    model = small("bert")
    apply(model, "quantize.int8")
    assert isinstance(model.module.cls.predictions.transform.dense, Int8Linear)
    assert model.module.cls.predictions.decoder.bias is model.module.cls.predictions.bias


@pytest.mark.quick
def test_skip_leaves_modules_out(tmp_path):
    model = small("llama")
    apply(model, "quantize.int8", {"skip": ["*.down_proj", "lm_head"]})
    layer = model.module.model.layers[0]
    assert isinstance(layer.mlp.down_proj, nn.Linear) and isinstance(layer.mlp.up_proj, Int8Linear)
    assert isinstance(model.module.lm_head, nn.Linear)
    assert_replays(model, tokens(), tmp_path)


def test_packed_layers_are_declared():
    model = small("llama")
    apply(model, "quantize.int8", {"target": "language.attention"})
    state = model.state()
    assert {t.detail for traits in state.values() for t in traits} == {"8 bits"}
    assert set(state) == {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}


@pytest.mark.quick
def test_bfloat16_models_put_out_bfloat16_after_loading(tmp_path):
    model, ids = small("llama-tied"), tokens()
    cast_parameters(model.module, torch.bfloat16)
    model.dtype = model.stored = "bfloat16"
    apply(model, "quantize.int8")
    assert model.module.model.embed_tokens(ids).dtype == torch.bfloat16
    assert_replays(model, ids, tmp_path)
    assert zoo.load(tmp_path / "model").module.model.embed_tokens(ids).dtype == torch.bfloat16


# --- after other stages ---------------------------------------------------------------------------------------------


def test_a_shared_layer_is_packed_once(tmp_path):
    model, ids = small("gpt2"), tokens()
    apply(model, "share.ffn")
    apply(model, "quantize.int8")
    first, second = (block.mlp.c_fc for block in model.module.transformer.h)
    assert first is second and isinstance(first, Int8Linear)
    assert_replays(model, ids, tmp_path)


def test_both_factors_of_a_low_rank_layer_are_packed(tmp_path):
    model, ids = small("llama-gqa"), tokens()
    apply(model, "lowrank.svd", {"ratio": 0.5, "whiten": False})
    params = model.params
    apply(model, "quantize.int8")
    up = model.module.model.layers[0].mlp.up_proj
    assert isinstance(up.down, Int8Linear) and isinstance(up.up, Int8Linear) and up.up.bias is not None
    assert model.params == params
    assert_replays(model, ids, tmp_path)


def test_zeros_stay_zeros():
    model = small("llama")
    apply(model, "prune.magnitude", {"pattern": "2:4"})
    zeros = model.module.model.layers[0].mlp.up_proj.weight == 0
    apply(model, "quantize.int8")
    assert bool((model.module.model.layers[0].mlp.up_proj.weight_int8[zeros] == 0).all())
    kinds = {trait.kind for trait in model.state()["model.layers.0.mlp.up_proj"]}
    assert kinds == {"sparse", "packed"}


# --- refusals -------------------------------------------------------------------------------------------------------


def test_experts_that_are_skipped_and_routers_stay_and_the_record_says_so(tmp_path):
    model, ids = small("mixtral"), tokens()
    apply(model, "quantize.int8", {"skip": ["*.experts.*"]})
    assert isinstance(model.module.lm_head, Int8Linear)
    left = {kept["kind"]: kept["names"] for kept in model.lineage[-1].record["left_as_is"]}
    experts = ["*.mlp.experts.gate_up_proj", "*.mlp.experts.down_proj"]
    assert left == {"routers": ["*.mlp.gate"], "experts in one tensor": experts}
    assert_replays(model, ids, tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize("target", ["all", "language.ffn", "language.blocks[0]"])
def test_packing_twice_is_refused(target):
    model = small("llama")
    apply(model, "quantize.int8")
    with pytest.raises(Refused, match=r"is packed \(8 bits\) by stage 1 \(quantize.int8\)"):
        check(model, "quantize.int8", target=target)


def test_one_half_of_a_tied_pair_cannot_be_skipped():
    with pytest.raises(Refused, match=r"model.embed_tokens and lm_head share one weight.*skip both or neither"):
        check(small("llama-tied"), "quantize.int8", skip=["lm_head"])
    check(small("llama-tied"), "quantize.int8", skip=["lm_head", "*.embed_tokens"])


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(UnknownName, match=r"skip = '\*.donw_proj' matches no module"):
        check(small("llama"), "quantize.int8", skip=["*.donw_proj"])


def test_nothing_left_is_refused():
    with pytest.raises(Refused, match=r"nothing is left to pack in 'language.ffn'"):
        check(small("llama"), "quantize.int8", target="language.ffn", skip=["*"])


def test_an_unknown_lookup_is_refused():
    class Odd(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids).flip(-1)

    model = small("llama")
    model.module.model.embed_tokens = Odd(96, 32)
    with pytest.raises(Refused, match=r"is a Odd, whose lookup may do more than read rows. Set embedding = false"):
        check(model, "quantize.int8")


def test_a_weight_that_is_not_finite_is_named():
    model = small("llama")
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight[3, 0] = float("inf")
    with pytest.raises(
        ZooError, match=r"quantize.int8: model.layers.1.mlp.up_proj.weight .* the first \(inf\) at \[3, 0\]"
    ):
        apply(model, "quantize.int8")


def test_the_note_says_where_it_is_faster(monkeypatch):
    note = QuantizeInt8().note(small("llama"), options("quantize.int8"))
    assert "little or no time token by token" in note and "prompts" in note
    monkeypatch.setattr("zoo_compress.methods.quantize.int8.SMALL", 1)
    assert "token by token gets faster" in QuantizeInt8().note(small("llama"), options("quantize.int8"))


def test_packing_leaves_the_global_random_state():
    before = torch.get_rng_state()
    apply(small("llama"), "quantize.int8", {}, context())
    assert torch.equal(torch.get_rng_state(), before)


# --- W8A8 -----------------------------------------------------------------------------------------------------------


def w8a8(inputs=64, outputs=48):
    draw = torch.Generator().manual_seed(inputs)
    layer = W8A8Linear(inputs, outputs, bias=True)
    layer.weight_int8.copy_(torch.randint(-127, 128, (outputs, inputs), generator=draw))
    layer.scale.copy_(torch.rand(outputs, generator=draw) * 0.01)
    nn.init.normal_(layer.bias, generator=draw)
    return layer, torch.randn(40, inputs, generator=draw)


def test_activations_are_rounded_for_each_token_and_multiplied_without_loss():
    """Against the definition, in double; a row of zeros stays one."""
    layer, x = w8a8()
    x[3] = 0
    scale = x.double().abs().amax(1, keepdim=True) / 127
    rounded_x = (x.double() / scale.where(scale != 0, 1)).round() * scale
    want = rounded_x @ (layer.weight_int8.double() * layer.scale.double()[:, None]).T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-6, atol=1e-6)
    assert torch.equal(layer(x[None])[0], layer(x)) and layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.quick
def test_a_token_gives_the_same_bits_alone_in_a_batch_and_by_either_kernel(monkeypatch):
    for inputs in (16, 64, 3000):
        layer, x = w8a8(inputs)
        x[0] = x[0].sign()  # the largest sums there are
        layer.weight_int8[0] = 127 * x[0].sign()
        many = layer(x)
        assert torch.equal(torch.cat([layer(row[None]) for row in x]), many)
        with monkeypatch.context() as patch:
            patch.setattr("zoo_compress.methods.quantize.formats.w8a8_layers.choose", lambda *_, **__: "widened")
            assert torch.equal(layer(x), many)


def test_gradients_pass_as_if_nothing_had_been_rounded():
    layer, x = w8a8()
    asked = x.clone().requires_grad_()
    out = layer(asked)
    torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(asked.grad, layer.dequantize().sum(0).expand_as(x))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "phi3"])
def test_activations_are_an_option_that_a_saved_model_keeps(name, tmp_path):
    model = small(name)
    skipped = [{"pattern": "*.o_proj", "activations": "float"}] if name == "phi3" else []
    assert_outline_foretells(model, "quantize.int8", activations="int8", overrides=skipped)
    kinds = {path: type(model.module.get_submodule(path)) for path in model.lineage[-1].record["modules"]}
    head = model.anatomy.head
    assert kinds[head] is Int8Linear and W8A8Linear in kinds.values()
    assert all(kind is Int8Linear for path, kind in kinds.items() if path.endswith("o_proj")) or not skipped
    details = {path: traits[0].detail for path, traits in model.state().items()}
    assert {path for path, kind in kinds.items() if kind is W8A8Linear} == {
        p for p, d in details.items() if d == "W8A8"
    }
    assert_replays(model, tokens(), tmp_path)


def test_activations_are_never_a_default_their_loss_is_said_and_groups_refused():
    stage, model = QuantizeInt8(), small("llama")
    assert options("quantize.int8").activations == "float"
    assert "KL" in stage.note(model, options("quantize.int8", activations="int8"))
    with pytest.raises(Refused, match=r"has 8 bits and group = 32; activations = 'int8' multiplies whole rows"):
        check(model, "quantize.int8", activations="int8", group=32)
