"""Checkpoint directories that do not quite fit their config, and weights drawn where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from twins import twin
from zoo_slm.models.minicpm import fold

import zoo
from zoo.errors import ArtifactError, RequestError

pytestmark = pytest.mark.quick


def rewritten(folder: Path, name: str, *, add: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A twin saved by transformers, with more tensors in its file."""
    twin(name, **changes).save_pretrained(folder)
    tensors = {**load_file(folder / "model.safetensors"), **(add or {})}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.norm.bias", "model.embed_positions.weight", "model.layers.1.mlp.gate_proj.bias"]
)
def test_a_tensor_that_the_model_would_need_is_not_dropped(tmp_path: Path, name: str):
    folder = rewritten(tmp_path / "model", "llama", add={name: torch.ones(32)})
    with pytest.raises(ArtifactError, match=f"tensor {name!r} is not part of the model of its config.json"):
        zoo.load(folder)


def test_the_head_of_another_task_is_left_out(tmp_path: Path):
    assert zoo.load(rewritten(tmp_path / "model", "llama", add={"score.weight": torch.ones(2, 32)})).params


def test_a_head_of_its_own_stays_apart_whatever_the_config_says(tmp_path: Path):
    folder = rewritten(tmp_path / "model", "llama-tied", add={"lm_head.weight": torch.ones(96, 32)})
    model = zoo.load(folder)
    assert torch.equal(model.module.lm_head.weight, torch.ones(96, 32))
    again = zoo.load(model.save(tmp_path / "saved"))
    ids = model.family.example(model)
    assert torch.equal(again.family.forward(again, ids), model.family.forward(model, ids))


@pytest.mark.parametrize("name", ["gpt2-medium", "flan-t5-small"])
def test_random_weights_are_as_large_as_transformers_draws_them(name: str):
    """GPT-2 scales its residual matrices, T5 each by its own rule; both draw for the layers they hold."""
    import transformers

    drawn = zoo.load(name, scale="tiny", weights="random").module
    auto = transformers.AutoModelForCausalLM if name.startswith("gpt2") else transformers.AutoModelForSeq2SeqLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = auto.from_config(drawn.config).state_dict()
    for key, tensor in drawn.state_dict().items():
        if tensor.dim() == 2 and tensor.numel() > 1000 and key != "lm_head.weight":
            assert 0.8 < float(tensor.std() / theirs[key].std()) < 1.25, key


def test_only_a_minicpm_is_folded():
    with pytest.raises(
        RequestError, match=r"fold takes a MiniCPM module, such as model\.module, not a LlamaForCausalLM"
    ):
        fold(twin("llama"))


def test_random_weights_of_a_model_whose_parts_draw_by_their_own_sizes(tmp_path: Path):
    """Gemma 3n's way to draw asks for a size that its language model has, and the one with the head has not."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = Gemma3nTextConfig(
        vocab_size=96,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=4,
        intermediate_size=64,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
        num_kv_shared_layers=0,
        **sizes,
    )
    Gemma3nForCausalLM(config).save_pretrained(tmp_path)
    drawn = zoo.load(tmp_path, weights="random")
    assert float(drawn.module.model.per_layer_projection_scale) == pytest.approx(32**-0.5)
