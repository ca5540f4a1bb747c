"""Folds: where scaling inputs changes nothing, found by trying; and nowhere else."""

from __future__ import annotations

import pytest
import torch
from stages import apply, logits, small
from torch import nn
from twins import tokens
from zoo_compress.methods.quantize.folds import Fold, find_folds

from zoo.anatomy.modules import output_axis

# What gives the inputs of which layers in each block; a gain stored less one (Gemma), norms after the blocks' parts (BERT,
# OLMo 2), grouped value heads (llama-gqa), an activation between (GPT-2) and a router (Mixtral) leave only some.
FOLDS = {
    "llama": {"input_layernorm": "q k v", "post_attention_layernorm": "gate up", "up_proj": "down", "v_proj": "o"},
    "llama-gqa": {"input_layernorm": "q k v", "post_attention_layernorm": "gate up", "up_proj": "down"},
    "gemma2": {"up_proj": "down"},
    "olmo2": {"up_proj": "down"},
    "phi3": {"input_layernorm": "qkv", "post_attention_layernorm": "gate_up", "gate_up_proj": "down"},
    "mixtral": {"input_layernorm": "q k v"},
    "gpt2": {"ln_1": "c_attn", "ln_2": "c_fc", "c_attn": "c"},
    "gpt-neox": {
        "input_layernorm": "query_key_value",
        "post_attention_layernorm": "dense_h_to_4h",
        "query_key_value": "dense",
    },
    "opt": {"self_attn_layer_norm": "q k v", "final_layer_norm": "fc1", "v_proj": "out"},
    "bert": {"value": "dense"},
    "falcon": {"input_layernorm": "query_key_value dense_h_to_4h"},
}


def layers(model):
    paths = model.anatomy.select("language").projections()
    modules = dict(model.module.named_modules(remove_duplicate=False))
    return [path for path in paths if path in modules]


def last(path):
    return path.rpartition(".")[2]


@pytest.mark.parametrize("name", FOLDS)
def test_the_folds_of_an_architecture_are_found_in_every_block_and_its_weights_left_alone(name):
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    folds = find_folds(model, layers(model))
    found = {last(fold.source): " ".join(last(path).removesuffix("_proj") for path in fold.readers) for fold in folds}
    assert found == FOLDS[name]
    assert len(folds) == len(found) * len(model.anatomy.stack().blocks)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.module.state_dict().items())


@pytest.mark.parametrize("name", FOLDS)
def test_folding_any_scale_in_changes_nothing_that_a_model_computes(name):
    model, ids = small(name), tokens()
    want = logits(model, ids)
    draw = torch.Generator().manual_seed(0)
    for fold in find_folds(model, layers(model)):
        scale_I = torch.exp(torch.randn(int(fold.columns.max()) + 1, generator=draw))
        scale_I = fold.divide(model.module, scale_I)
        for path in fold.readers:
            reader = model.module.get_submodule(path)
            with torch.no_grad():
                weight = reader.weight.t() if output_axis(reader) else reader.weight
                weight[:, fold.columns] *= scale_I[fold.columns]
    torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_left_out_takes_its_norm_along():
    model = small("llama")
    folds = find_folds(model, [path for path in layers(model) if not path.endswith("k_proj")])
    assert not any(fold.source.endswith("input_layernorm") for fold in folds)


def test_a_shared_feed_forward_layer_is_scaled_once_and_not_by_its_norms():
    model = small("llama")
    apply(model, "share.ffn")
    folds = [fold for fold in find_folds(model, layers(model)) if ".mlp" in "".join((fold.source, *fold.readers))]
    assert [last(fold.source) for fold in folds] == ["up_proj"]


def test_a_gain_in_half_precision_is_divided_by_what_it_can_be():
    norm = nn.LayerNorm(4, bias=False).bfloat16()
    norm.weight.data = torch.tensor([1.0, 0.7, 3.0, 0.0]).bfloat16()
    before = norm.weight.detach().float()
    places = torch.arange(4)
    by = Fold("0", places, places, ("1",)).divide(nn.Sequential(norm), torch.tensor([3.0, 1.1, 0.3, 2.0]))
    torch.testing.assert_close(norm.weight.detach().float() * by, before, rtol=1e-6, atol=0)
    torch.testing.assert_close(by, torch.tensor([3.0, 1.1, 0.3, 2.0]), rtol=2**-8, atol=0)
