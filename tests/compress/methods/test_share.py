"""Sharing: one FFN, one tensor, for every selected block."""

from __future__ import annotations

import pytest
import torch
from stages import apply, assert_outline_foretells, assert_replays, check, logits, small
from torch import nn
from twins import TWINS, tokens
from zoo_compress.methods.share import ShareFFN

from zoo.errors import Refused

pytestmark = pytest.mark.quick

DENSE = [name for name in TWINS if name != "mixtral"]
DEPTH = {"gpt2": "n_layer"}


def deep(name):
    return small(name, **{DEPTH.get(name, "num_hidden_layers"): 3})


def layers(model):
    """The FFN projections of every block: a list of modules for each projection."""
    blocks = model.anatomy.stacks["language"].blocks
    return [
        [model.module.get_submodule(path) for path in paths]
        for paths in zip(*(block.ffn.projections for block in blocks), strict=True)
    ]


@pytest.mark.parametrize("name", DENSE)
def test_the_mean_is_the_mean_of_weights_and_biases(name):
    model = deep(name)
    before = [[{k: p.detach().clone() for k, p in m.named_parameters()} for m in group] for group in layers(model)]
    apply(model, "share.ffn")
    for group, was in zip(layers(model), before, strict=True):
        assert all(module is group[0] for module in group)
        for key, parameter in group[0].named_parameters():
            expected = torch.stack([each[key] for each in was]).double().mean(0)
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", DENSE)
def test_outline_foretells_and_a_saved_model_loads(name, tmp_path):
    model = deep(name)
    assert_outline_foretells(model, "share.ffn")
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("name", DENSE)
def test_every_shared_tensor_has_one_first_name_and_is_counted_once(name):
    model = deep(name)
    one = sum(p.numel() for group in layers(model) for p in group[0].parameters())
    before, aliases = model.params, len(model.aliases())
    apply(model, "share.ffn")
    assert model.params == before - 2 * one
    tensors = sum(len(list(group[0].parameters())) for group in layers(model))
    assert len(model.aliases()) == aliases + 2 * tensors


@pytest.mark.parametrize(("start", "index"), [("first", 0), (1, 1), (2, 2)])
def test_it_starts_as_one_of_the_blocks(start, index):
    model = deep("llama")
    expected = [group[index].weight.detach().clone() for group in layers(model)]
    apply(model, "share.ffn", {"start": start})
    assert all(torch.equal(group[0].weight, was) for group, was in zip(layers(model), expected, strict=True))


def test_equal_ffns_shared_leave_the_function_alone():
    model, ids = deep("bert"), tokens()
    for group in layers(model):
        for module in group[1:]:
            module.load_state_dict(group[0].state_dict())
    before = logits(model, ids)
    apply(model, "share.ffn")
    assert torch.equal(logits(model, ids), before)


def test_norms_and_attention_stay_with_their_blocks():
    model = deep("bert")
    apply(model, "share.ffn")
    first, second = (model.module.bert.encoder.layer[i] for i in (0, 1))
    assert first.output.dense is second.output.dense and first.output.LayerNorm is not second.output.LayerNorm
    assert first.attention.self.query is not second.attention.self.query


def test_only_the_selected_blocks_share(tmp_path):
    model, ids = deep("gpt2"), tokens()
    apply(model, "share.ffn", {"target": "language.blocks[1:]", "start": 2})
    up = layers(model)[0]
    assert up[1] is up[2] and up[0] is not up[1]
    assert_replays(model, ids, tmp_path)


def test_gradients_of_all_blocks_add_up_in_the_one_layer():
    model, ids = deep("llama"), tokens()
    apply(model, "share.ffn")
    model.module(input_ids=ids).logits.pow(2).mean().backward()
    shared = layers(model)[0][0].weight.grad.clone()
    parts = torch.zeros_like(shared)
    for index in range(3):  # the reference: separate copies of the same layer
        separate = deep("llama")
        separate.module.load_state_dict(model.module.state_dict())
        separate.module(input_ids=ids).logits.pow(2).mean().backward()
        parts += layers(separate)[0][index].weight.grad
    torch.testing.assert_close(shared, parts, rtol=1e-4, atol=1e-6)


def test_shared_layers_are_declared():
    model = deep("llama")
    apply(model, "share.ffn")
    (trait,) = model.state()["model.layers.2.mlp.up_proj"]
    assert (trait.kind, trait.detail) == ("shared", "one for 3 blocks")
    assert "not arithmetic" in ShareFFN().note(model, None)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_different_widths_are_refused():
    model = deep("llama")
    mlp = model.module.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
    mlp.down_proj = nn.Linear(48, 32, bias=False)
    with pytest.raises(
        Refused, match=r"layers.1.*\(48, 32\) but .*layers.0.*\(64, 32\); one layer cannot stand for both"
    ):
        check(model, "share.ffn")


def test_what_is_shared_already_is_refused():
    model = deep("llama")
    apply(model, "share.ffn", {"target": "language.blocks[:2]"})
    with pytest.raises(Refused, match=r"layers.1.mlp.gate_proj already is model.layers.0.mlp.gate_proj"):
        check(model, "share.ffn", target="language.blocks[1:]")


@pytest.mark.parametrize(
    ("stage", "values", "says"),
    [
        ("quantize.int8", {}, r"is packed \(8 bits\) by stage 1 \(quantize.int8\). Put share.ffn before quantize.int8"),
        ("prune.magnitude", {"sparsity": 0.5}, r"is sparse \(50%\) by stage 1 .* Put share.ffn before prune.magnitude"),
        ("lowrank.svd", {"rank": 4, "whiten": False}, r"is factored \(rank 4\) by stage 1"),
    ],
)
def test_layers_that_are_not_dense_are_refused(stage, values, says):
    model = deep("llama")
    apply(model, stage, values)
    with pytest.raises(Refused, match=says):
        check(model, "share.ffn")


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("mixtral", {}, r"holds 4 experts that its own block's router chooses from"),
        ("llama", {"target": "language.blocks[0]"}, r"is one block, and sharing takes two"),
        ("llama", {"target": "language.attention"}, r"Write 'language'"),
        ("llama", {"start": 7}, r"start = 7 is not among the selected blocks 0 to 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(name, values, says):
    with pytest.raises(Refused, match=says):
        check(deep(name), "share.ffn", **values)


@pytest.mark.parametrize("stage", ["quantize.int8", "lowrank.svd"])
def test_a_stage_that_replaces_modules_takes_all_places_of_a_shared_one(stage):
    values = {"rank": 4, "whiten": False} if stage == "lowrank.svd" else {}
    model = deep("llama")
    apply(model, "share.ffn")
    with pytest.raises(Refused, match=r"is shared with model.layers.2.*Aim at every block that shares it"):
        check(model, stage, target="language.blocks[:2]", **values)
