"""MobiLlama: one feed-forward layer for all, as the paper's formulas have it and as its files are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from slm.models import checks
from torch import Tensor
from torch.nn.functional import silu
from zoo_slm.models.mobillama import MobiLlamaConfig, MobiLlamaForCausalLM

import zoo
from zoo.errors import ArtifactError, Refused

# The config.json of the 0.5B model, except for sizes: it calls itself a Llama and names four key/value heads.
FILE: dict[str, Any] = {
    "architectures": ["MobiLlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modelling_mobillama.MobiLlamaForCausalLM"},
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 32000,
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model() -> MobiLlamaForCausalLM:
    return checks.tiny(MobiLlamaForCausalLM, MobiLlamaConfig(**SMALL))


def reference(ids: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The logits (T, V) of one text, from the formulas."""
    x = tensors["model.embed_tokens.weight"][ids]
    gate, up, down = (tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    for layer in range(3):
        place = f"model.layers.{layer}."
        y = checks.rms_norm(x, tensors[f"{place}input_layernorm.weight"], 1e-5)
        frequencies = checks.rotary_frequencies(8)
        x = x + checks.llama_attention(y, tensors, f"{place}self_attn.", heads=4, kv_heads=4, frequencies=frequencies)
        y = checks.rms_norm(x, tensors[f"{place}post_attention_layernorm.weight"], 1e-5)
        x = x + (silu(y @ gate.T) * (y @ up.T)) @ down.T
    return checks.rms_norm(x, tensors["model.norm.weight"], 1e-5) @ tensors["lm_head.weight"].T


def test_logits_are_those_of_the_formulas(model: MobiLlamaForCausalLM):
    ids = checks.tokens(model)
    tensors = dict(model.named_parameters())  # a shared one comes once, under layer 0
    assert "model.layers.1.mlp.up_proj.weight" not in tensors
    expected = torch.stack([reference(row, tensors) for row in ids]).detach()
    checks.near(checks.logits(model, ids), expected)


def test_layers_share_one_ffn_and_every_head_has_its_own_key(model: MobiLlamaForCausalLM):
    first, *others = model.model.layers
    assert all(layer.mlp is first.mlp for layer in others)
    assert first.self_attn.k_proj.weight.shape == first.self_attn.v_proj.weight.shape == (32, 32)
    private = MobiLlamaForCausalLM(MobiLlamaConfig(**SMALL, shared_ffn=False))
    assert len({id(layer.mlp.up_proj.weight) for layer in private.model.layers}) == 3
    sizes = checks.as_model(model).anatomy.sizes()
    assert sizes == {"layers": 3, "width": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "ffn": 48}


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_it_runs_as_every_model_does(model: MobiLlamaForCausalLM, check: Any):
    check(model)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 534_865_920),  # 0.5B and its chat version
        ({"hidden_size": 2560, "intermediate_size": 10240, "max_position_embeddings": 2560}, 819_315_200),  # 0.8B
        ({"shared_ffn": False}, 1_261_529_088),  # 1B and its chat version
    ],
)
def test_it_has_as_many_parameters_as_was_published(changes: dict[str, Any], count: int):
    assert checks.params({**FILE, **changes}) == count


# --- published files ----------------------------------------------------------------------------------------------------


def published(model: MobiLlamaForCausalLM, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors as a file has them: with rotary tables, and with the FFN under these layers."""
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items()}
    tables = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(3)}
    private = {name: tensor for name, tensor in tensors.items() if ".mlp." not in name}
    shared = {name: tensor for name, tensor in tensors.items() if ".mlp." in name and int(name.split(".")[2]) in layers}
    return private | shared | tables


@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (2,)], ids=["repeated", "under the first", "under the last"])
def test_a_published_checkpoint_loads_with_one_ffn(
    model: MobiLlamaForCausalLM, tmp_path: Path, layers: tuple[int, ...]
):
    ids = checks.tokens(model)
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL}, published(model, layers))
    loaded = zoo.load(folder)
    assert type(loaded.module) is MobiLlamaForCausalLM
    assert len({id(layer.mlp) for layer in loaded.module.model.layers}) == 1
    assert len({layer.mlp.up_proj.weight.data_ptr() for layer in loaded.module.model.layers}) == 1
    assert loaded.params == checks.as_model(model).params
    checks.near(checks.logits(loaded.module, ids), checks.logits(model, ids), 1e-5)
    loaded.save(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert sum(".mlp." in name for name in file.keys()) == 3  # noqa: SIM118
    again = zoo.load(tmp_path / "saved")
    assert len({id(layer.mlp.up_proj.weight) for layer in again.module.model.layers}) == 1
    assert torch.equal(checks.logits(again.module, ids), checks.logits(loaded.module, ids))


def test_repeated_ffns_that_differ_are_refused_naming_the_first(model: MobiLlamaForCausalLM, tmp_path: Path):
    tensors = published(model, (0, 1, 2))
    for name in ("model.layers.2.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        tensors[name] = tensors[name] + 1
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL}, tensors)
    with pytest.raises(
        ArtifactError, match=r"'model.layers.1.mlp.up_proj.weight' is not 'model.layers.0.mlp.up_proj.weight'"
    ):
        zoo.load(folder)
    with pytest.raises(ArtifactError, match=r'write "shared_ffn": false into its config\.json'):
        zoo.load(folder)
    checks.write_checkpoint(folder, {**FILE, **SMALL, "shared_ffn": False}, tensors)
    loaded = zoo.load(folder)
    assert torch.equal(
        loaded.module.model.layers[2].mlp.down_proj.weight, tensors["model.layers.2.mlp.down_proj.weight"]
    )


def test_copies_are_compared_across_files(model: MobiLlamaForCausalLM, tmp_path: Path):
    tensors = published(model, (0, 1, 2))
    last = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.layers.2.mlp.")}
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL}, tensors)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    last["model.layers.2.mlp.gate_proj.weight"] = last["model.layers.2.mlp.gate_proj.weight"][:, :1]
    save_file({name: tensor.contiguous() for name, tensor in last.items()}, folder / "model-00002-of-00002.safetensors")
    files = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    files |= dict.fromkeys(last, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(ArtifactError, match=r"'model.layers.2.mlp.gate_proj.weight' has shape \(48, 1\), and"):
        zoo.load(folder)


def test_a_missing_ffn_is_named(model: MobiLlamaForCausalLM, tmp_path: Path):
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL}, published(model, ()))
    with pytest.raises(ArtifactError, match=r"'model.layers.0.mlp.down_proj.weight' is missing"):
        zoo.load(folder)


# --- saving and compressing ---------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_shares_still(model: MobiLlamaForCausalLM, tmp_path: Path):
    loaded = checks.roundtrip(model, tmp_path / "saved")
    assert len(loaded.aliases()) == 6  # three matrices in two further layers


def test_what_transformers_saves_holds_one_copy_too(model: MobiLlamaForCausalLM, tmp_path: Path):
    single = checks.as_model(model).module
    single.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(".mlp." in name for name in file.keys()) == 3  # noqa: SIM118
    ids = checks.tokens(model)
    assert torch.equal(checks.logits(zoo.load(tmp_path).module, ids), checks.logits(single, ids))


@pytest.mark.parametrize(
    ("stage", "options", "count"),
    [
        ("inherit", {"layers": "first:2"}, 2),
        ("prune.structured", {"ffn": 0.25, "heads": 0.5}, 3),
        ("quantize.int8", {}, 3),
        ("lowrank.svd", {"ratio": 0.5, "samples": 4, "length": 32}, 3),
    ],
)
def test_compressors_keep_the_sharing(
    model: MobiLlamaForCausalLM, tmp_path: Path, stage: str, options: dict[str, Any], count: int
):
    smaller = checks.compressed(model, tmp_path / "saved", stage, **options)
    layers = smaller.module.model.layers
    assert len(layers) == count
    assert len({id(layer.mlp.up_proj) for layer in layers}) == 1


def test_what_is_shared_is_not_shared_again(model: MobiLlamaForCausalLM, tmp_path: Path):
    with pytest.raises(Refused, match=r"model.layers.1.mlp.gate_proj already is model.layers.0.mlp.gate_proj"):
        checks.compressed(model, tmp_path / "saved", "share.ffn")
