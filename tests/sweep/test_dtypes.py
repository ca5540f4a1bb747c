"""What is loaded, saved and loaded again: the same bits in the same dtypes, in every precision, as the library has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import architectures, library_model, save
from zoo_slm.configs import auto_class

import zoo
from zoo.artifact.proof import computed_buffers, same_bits
from zoo.model.model import Model

# architecture -> a tensor, and the dtype that transformers gives it in bfloat16
FOUND = {
    "xglm causal-lm": ("model.embed_positions.weights", torch.bfloat16),  # computed in the default dtype
    "bart seq2seq": ("final_logits_bias", torch.bfloat16),
    "codegen causal-lm": ("transformer.rotary_emb.embed_positions", torch.float32),  # computed anew after loading
    "deepseek_v3 causal-lm": ("model.layers.2.mlp.gate.e_score_correction_bias", torch.float32),
    "falcon_h1 causal-lm": ("model.layers.0.mamba.mup_vector", torch.bfloat16),
    "olmo_hybrid causal-lm": ("model.layers.1.linear_attn.A_log", torch.float32),  # made so by the class itself
    "luke masked-lm": ("lm_head.bias", torch.bfloat16),  # ties other weights than its head
    "qwen3 causal-lm": ("model.rotary_emb.inv_freq", torch.float32),
}


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**module.state_dict(keep_vars=True), **dict(computed_buffers(module))}


def require_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert same_bits(tensor, theirs[name]), name


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model.family.forward(model, model.family.example(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FOUND)
def test_dtypes_are_those_of_the_library_and_come_back(name: str, dtype: str, tmp_path: Path):
    architecture = next(one for one in architectures("transformers") if one.name == name)
    folder = save(library_model(architecture), tmp_path / "plain", architecture.task)
    model = zoo.load(folder, dtype=dtype)
    theirs = auto_class(architecture.task).from_pretrained(folder, dtype=getattr(torch, dtype))
    require_same(model.module, theirs)
    watched, expected = FOUND[name]
    if dtype == "bfloat16":
        assert tensors(model.module)[watched].dtype == expected
    again = zoo.load(model.save(tmp_path / "saved"))
    require_same(model.module, again.module)
    if dtype == "bfloat16":
        assert torch.equal(logits(model), logits(again))
    wide = zoo.load(zoo.load(folder, dtype="float32").save(tmp_path / "wide"), dtype=dtype)
    require_same(wide.module, theirs)  # an artifact in float32, loaded in less
