"""Twins: tiny random models of real architectures, two layers wide enough to count on fingers.

Each is built by transformers itself from a small config (no download), on CPU, in eval mode, always with the same
weights; the global random state is left as it was. Biases and norm gains are random too, because their defaults (zeros
and ones) would hide a forgotten slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.model.model import Model

WIDTH, HEADS, FFN, VOCABULARY = 32, 4, 64, 96

_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MULTI_HEAD = {**_DECODER, "num_key_value_heads": HEADS}
_TIED = {**_DECODER, "tie_word_embeddings": True}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# name -> (config class, model class, config values)
TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _MULTI_HEAD),
    "llama-gqa": ("LlamaConfig", "LlamaForCausalLM", {**_DECODER, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", _TIED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _TIED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_DECODER, "head_dim": 12}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_TIED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 8},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _DECODER),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _DECODER),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 64, **_SPECIAL},
    ),
    "gpt-neox": (
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": FFN,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
            **_SPECIAL,
        },
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": FFN,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
        },
    ),
    "falcon": (
        "FalconConfig",
        "FalconForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "ffn_hidden_size": FFN,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "multi_query": True,
            "parallel_attn": True,
            "bias": True,
            **_SPECIAL,
        },
    ),
}
TWINS: tuple[str, ...] = tuple(TABLE)
CAUSAL: tuple[str, ...] = tuple(name for name in TWINS if name != "bert")


def twin(name: str, *, seed: int = 0, device: str = "cpu", **changes: Any) -> nn.Module:
    """Build the tiny model `name`; `changes` overrides config values. On "meta" it is an empty skeleton."""
    import transformers

    config_class, model_class, values = TABLE[name]
    config = getattr(transformers, config_class)(**{**values, **changes})
    build: Callable[[Any], nn.Module] = getattr(transformers, model_class)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        module = build(config).eval()
        if device != "meta":
            _shake(module)
    return module


def twin_model(name: str, *, seed: int = 0, device: str = "cpu", **changes: Any) -> Model:
    """The twin as a `Model` of the transformers text family, without a tokenizer."""
    from zoo_slm.language import TransformersText

    from zoo.plugins.declarations import ModelSpec

    module = twin(name, seed=seed, device=device, **changes)
    task = "masked-lm" if name == "bert" else "causal-lm"
    config = module.config.to_dict()  # type: ignore[operator, union-attr]
    spec = ModelSpec(name, "transformers", "text", task, plugin="zoo_slm", config=config)
    return Model(module, TransformersText(), spec, origin="random")


def tokens(*, batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, length) that avoid the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _shake(module: nn.Module) -> None:
    """Move every one-dimensional parameter off its default, and give matrices a scale that lets attention matter."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
