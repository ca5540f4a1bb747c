"""SlimLM: MPT with learned positions and biases, and the config of llm-foundry that its files come with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor
from zoo_slm.models.slimlm import SlimLMConfig, SlimLMForCausalLM, translated

import zoo
from zoo.errors import RequestError

# The published config.json of the 125M model, whole.
FILE: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": False,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0.0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "qk_gn": False,
        "qk_ln": False,
        "rope": False,
        "rope_dail_config": {"pos_idx_in_fp32": True, "type": "original", "xpos_scale_base": 512},
        "rope_hf_config": {"factor": 1.0, "type": "no_scaling"},
        "rope_impl": "dail",
        "rope_theta": 10000,
        "sliding_window_size": -1,
        "softmax_scale": None,
    },
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 768,
    "emb_pdrop": 0.0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "fc_type": {"name": "torch"},
    "ffn_config": {"fc_type": {"name": "torch"}, "ffn_type": "mptmlp"},
    "init_config": {
        "emb_init_std": None,
        "emb_init_uniform_lim": None,
        "fan_mode": "fan_in",
        "init_div_is_residual": True,
        "init_gain": 0.0,
        "init_nonlinearity": "relu",
        "init_std": None,
        "name": "kaiming_normal_",
    },
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 12,
    "n_layers": 12,
    "no_bias": False,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.4",
    "use_cache": False,
    "use_pad_tok_in_ffn": True,
    "vocab_size": 50368,
}
# The same as the catalogue has it, flat and with words for what is as usual.
FLAT: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"],
    "model_type": "mpt",
    "d_model": 768,
    "n_heads": 12,
    "n_layers": 12,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "learned_pos_emb": True,
    "alibi": False,
    "rope": False,
    "norm": "low_precision_layernorm",
    "ffn": "mptmlp (plain, GELU)",
    "no_bias": False,
    "tie_word_embeddings": True,
}
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return checks.tiny(SlimLMForCausalLM, SlimLMConfig(**SMALL))


# --- the reference ----------------------------------------------------------------------------------------------------


def reference(model: Any, row: Tensor) -> Tensor:
    """The logits (T, vocabulary) of one text, head by head and query by query."""
    config, tensors = model.config, model.state_dict()
    size = config.hidden_size // config.num_attention_heads
    table = tensors["transformer.wte.weight"]
    h = torch.stack([table[token] + tensors["transformer.wpe.weight"][place] for place, token in enumerate(row)])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * tensors[
            f"{name}.weight"
        ] + tensors.get(f"{name}.bias", 0)

    for layer in range(config.num_hidden_layers):
        block = f"transformer.blocks.{layer}."
        q, k, v = linear(norm(h, block + "norm_1"), block + "attn.Wqkv").split(config.hidden_size, dim=1)
        mixed = []
        for head in range(config.num_attention_heads):
            own = slice(head * size, (head + 1) * size)
            shares = [(k[: i + 1, own] @ q[i, own] / math.sqrt(size)).softmax(0) for i in range(len(row))]
            mixed.append(torch.stack([share @ v[: len(share), own] for share in shares]))
        h = h + linear(torch.cat(mixed, dim=1), block + "attn.out_proj")
        up = linear(norm(h, block + "norm_2"), block + "ffn.up_proj")
        h = h + linear(up * (1 + torch.erf(up / math.sqrt(2))) / 2, block + "ffn.down_proj")
    return norm(h, "transformer.norm_f") @ table.T


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"no_bias": True}, {"intermediate_size": 40}], ids=str)
def test_logits_are_those_of_the_formulas(change: dict[str, Any]) -> None:
    model = checks.tiny(SlimLMForCausalLM, SlimLMConfig(**SMALL, **change))
    ids = checks.tokens(model, batch=1)
    checks.near(checks.logits(model, ids)[0], reference(model, ids[0]), 1e-12)


def test_cached_decoding_equals_a_whole_pass(model: Any) -> None:
    checks.cached_equals_full(model)
    checks.generates_greedily(model)


def test_a_padded_row_is_as_alone(model: Any) -> None:
    checks.padded_equals_alone(model)


def test_places_are_counted_from_the_mask(model: Any) -> None:
    """Nobody has to give them, with a cache neither."""
    row = checks.tokens(model, batch=1, length=9)
    ids, mask = torch.nn.functional.pad(row, (3, 0)), torch.tensor([[0] * 3 + [1] * 9])
    expected = checks.logits(model, row)
    checks.near(checks.logits(model, ids, attention_mask=mask)[:, 3:], expected)
    with torch.no_grad():
        start = model(input_ids=ids[:, :10], attention_mask=mask[:, :10], use_cache=True)
        rest = model(input_ids=ids[:, 10:], attention_mask=mask, cache=start.cache, use_cache=True)
    checks.near(rest.logits, expected[:, -2:])


def test_a_text_longer_than_the_table_is_refused(model: Any) -> None:
    with pytest.raises(RequestError, match="learned 24 positions; with this call the text is 25 tokens long"):
        checks.logits(model, checks.tokens(model, length=25))


def test_a_static_cache_gives_the_same(model: Any) -> None:
    ids = checks.tokens(model, length=12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(ids, **asked), model.generate(ids, **asked, cache_implementation="static", disable_compile=True)
    )


def test_attention_implementations_agree(model: Any) -> None:
    checks.eager_equals_sdpa(model)


def test_gradients_reach_every_parameter(model: Any) -> None:
    learner = checks.tiny(SlimLMForCausalLM, SlimLMConfig(**{**SMALL, "max_position_embeddings": 16}))
    checks.gradients_reach_all(learner)


def test_checkpointing_keeps_the_gradients(model: Any) -> None:
    checks.checkpointing_keeps_gradients(model)


def test_bfloat16_is_near(model: Any) -> None:
    checks.bf16_is_near(model)


def test_saved_and_loaded_is_the_same(model: Any, tmp_path: Path) -> None:
    checks.roundtrip(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ({}, 125_311_488),
        ({"d_model": 1024, "n_heads": 16, "n_layers": 24}, 355_985_408),  # the widths of these three are inferred
        ({"d_model": 1536, "n_heads": 12, "n_layers": 24}, 760_470_528),
        ({"d_model": 2048, "n_heads": 16, "n_layers": 24}, 1_315_950_592),
    ],
)
def test_parameters_at_full_shape(shape: dict[str, int], count: int) -> None:
    assert checks.params({**FLAT, **shape}) == count


def test_a_published_checkpoint_loads(model: Any, tmp_path: Path) -> None:
    """With the names of its index, which has no head, and its config."""
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    parts = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj", "norm_1", "norm_2")
    names = ["norm_f", *(f"blocks.{layer}.{part}" for layer in range(2) for part in parts)]
    assert sorted(tensors) == sorted(
        [f"transformer.{name}.{kind}" for name in names for kind in ("weight", "bias")]
        + ["transformer.wte.weight", "transformer.wpe.weight"]
    )
    config = {
        **FILE,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 24,
        "vocab_size": 64,
        "torch_dtype": "float32",
    }
    loaded = zoo.load(checks.write_checkpoint(tmp_path / "hub", config, tensors))
    assert type(loaded.module) is SlimLMForCausalLM
    assert loaded.module.lm_head.weight is loaded.module.transformer.wte.weight
    ids = checks.tokens(model)
    checks.near(checks.logits(loaded.module, ids), checks.logits(model, ids))


# --- llm-foundry's config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [FILE, FLAT], ids=["nested", "flat"])
def test_the_published_config_is_the_default(config: dict[str, Any]) -> None:
    values = {key: value for key, value in translated(config).items() if key not in ("model_type", "auto_map")}
    ours, read = SlimLMConfig().to_dict(), SlimLMConfig(**values).to_dict()
    assert {k: v for k, v in read.items() if v != ours.get(k)}.keys() <= {
        "architectures",
        "dtype",
        "use_cache",
        "transformers_version",
    }
    assert ours.keys() <= read.keys()
    assert read["intermediate_size"] == 3072


def test_a_config_of_ours_is_left_as_it_is() -> None:
    ours = SlimLMConfig(**SMALL, intermediate_size=40).to_dict()
    assert translated(ours) == ours


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_config": {"alibi": True}}, "alibi = True; SlimLM does without"),
        ({"attn_config": {"qk_ln": True}}, "qk_ln = True"),
        ({"attn_config": {"attn_type": "grouped_query_attention"}}, "attn_type = 'grouped_query_attention'"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, "ffn_type = 'mptglu'"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale = 'inv_sqrt_d_model'"),
        ({"norm": "rmsnorm"}, "norm = 'rmsnorm'"),
        ({"ffn_config": {"ffn_act_fn": {"name": "relu"}}}, "ffn_act_fn = {'name': 'relu'}"),
        ({"ffn_config": "mptmlp"}, "ffn_config = 'mptmlp', which should be a table of options"),
        ({"attn_config": {"kv_n_heads": 2}}, "kv_n_heads = 2 beside"),
        ({"attn_config": {"attn_logit_softcapping": 30.0}}, "attn_logit_softcapping = 30.0"),
        ({"expansion_ratio": "4"}, "expansion_ratio = '4', which is not a number"),
    ],
)
def test_other_kinds_of_mpt_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        translated({**FLAT, **change})


def test_a_config_without_a_width_is_refused() -> None:
    with pytest.raises(RequestError, match="does not say how wide"):
        checks.params({key: value for key, value in FLAT.items() if key != "d_model"})


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(RequestError, match="a width of 768 does not divide into 7 heads"):
        checks.params({**FLAT, "n_heads": 7})
