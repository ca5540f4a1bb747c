"""Tele-FLM: a Llama with muP's constants at both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor
from torch.nn.functional import silu
from zoo_slm.models.teleflm import TeleFLMConfig, TeleFLMForCausalLM

import zoo

pytestmark = pytest.mark.quick

# The config.json of the 52B model.
FILE: dict[str, Any] = {
    "architectures": ["TeleFLMForCausalLM"],
    "model_type": "TeleFLM",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_teleflm.TeleFLMConfig",
        "AutoModelForCausalLM": "modeling_teleflm.TeleFLMForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "input_mult": 1.0,
    "intermediate_size": 21824,
    "max_position_embeddings": 4096,
    "mup_scale_factor": 16.0,
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "num_key_value_heads": 64,
    "output_mult": 0.5,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mup": True,
    "vocab_size": 80384,
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "input_mult": 3.0,
}


def made(**changes: Any) -> TeleFLMForCausalLM:
    return checks.tiny(TeleFLMForCausalLM, TeleFLMConfig(**{**SMALL, **changes}))


@pytest.fixture(scope="module")
def model() -> TeleFLMForCausalLM:
    return made()


def reference(ids: Tensor, tensors: dict[str, Tensor], scales: tuple[float, float]) -> Tensor:
    """The logits (T, V) of one text, from the formulas."""
    x = tensors["model.embed_tokens.weight"][ids] * scales[0]
    for layer in range(2):
        place = f"model.layers.{layer}."
        y = checks.rms_norm(x, tensors[f"{place}input_layernorm.weight"], 1e-5)
        frequencies = checks.rotary_frequencies(8)
        x = x + checks.llama_attention(y, tensors, f"{place}self_attn.", heads=4, kv_heads=4, frequencies=frequencies)
        y = checks.rms_norm(x, tensors[f"{place}post_attention_layernorm.weight"], 1e-5)
        gate, up, down = (tensors[f"{place}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (silu(y @ gate.T) * (y @ up.T)) @ down.T
    return checks.rms_norm(x, tensors["model.norm.weight"], 1e-5) @ tensors["lm_head.weight"].T * scales[1]


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, (3.0, 0.5 / 16)),
        ({"output_mult": 2.0, "mup_scale_factor": 80.0}, (3.0, 2 / 80)),
        ({"use_mup": False}, (1.0, 1.0)),
    ],
    ids=["52b", "1t", "without"],
)
def test_logits_are_those_of_the_formulas(changes: dict[str, Any], scales: tuple[float, float]):
    model = made(**changes)
    ids = checks.tokens(model)
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    checks.near(checks.logits(model, ids), torch.stack([reference(row, tensors, scales) for row in ids]))


def test_what_the_family_gives_the_head_is_scaled(model: TeleFLMForCausalLM):
    single = checks.as_model(model)
    ids = checks.tokens(model)
    with torch.no_grad():
        hidden, head = single.family.hidden(single, {"input_ids": ids})
        assert torch.equal(head(hidden), checks.logits(single.module, ids))


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_it_runs_as_every_model_does(model: TeleFLMForCausalLM, check: Any):
    check(model)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 52_824_121_344),
        (
            {"vocab_size": 80896, "max_position_embeddings": 2048, "output_mult": 1.0, "mup_scale_factor": 32.0},
            52_832_509_952,
        ),
        (
            {
                "hidden_size": 20480,
                "intermediate_size": 98304,
                "num_hidden_layers": 140,
                "num_attention_heads": 160,
                "num_key_value_heads": 160,
                "vocab_size": 81920,
                "output_mult": 2.0,
                "mup_scale_factor": 80.0,
            },
            1_083_813_908_480,
        ),
    ],
    ids=["52b", "52b-instruct", "1t"],
)
def test_it_has_as_many_parameters_as_was_published(changes: dict[str, Any], count: int):
    assert checks.params({**FILE, **changes}) == count


def test_a_published_checkpoint_loads(model: TeleFLMForCausalLM, tmp_path: Path):
    parts = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo")]
    parts += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    names |= {f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in parts}
    tensors = {name: tensor.float() for name, tensor in model.named_parameters()}
    assert tensors.keys() == names
    loaded = zoo.load(checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL}, tensors), dtype="float32")
    assert type(loaded.module) is TeleFLMForCausalLM
    ids = checks.tokens(model)
    assert torch.equal(checks.logits(loaded.module, ids), checks.logits(checks.as_model(model).module, ids))


def test_saved_and_loaded_it_is_the_same(model: TeleFLMForCausalLM, tmp_path: Path):
    checks.roundtrip(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("inherit", {"layers": "first:1"}),
        ("prune.structured", {"ffn": 0.25, "heads": 0.5}),
        ("share.ffn", {}),
        ("quantize.int8", {}),
        ("lowrank.svd", {"ratio": 0.5, "samples": 4, "length": 32}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_compressors_work(model: TeleFLMForCausalLM, tmp_path: Path, stage: str, options: dict[str, Any]):
    checks.compressed(model, tmp_path / "saved", stage, **options)
