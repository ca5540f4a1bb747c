"""MobiLlama: a Llama whose layers all use one feed-forward layer.

Paper: MobiLlama: Towards Accurate and Lightweight Fully Transparent GPT (2402.16840), section 3.2. Layer i computes
`x = x + attention_i(norm1_i(x)); x = x + ffn(norm2_i(x))`: attention and both norms are its own, the SwiGLU FFN is the
same object everywhere, so that it is stored, counted and trained once.
Code: written here over transformers' Llama (Apache-2.0), after the description in the paper and the shapes of the
published models; the authors' repository is Apache-2.0. Weights: MBZUAI/MobiLlama-05B and -08B are tagged MIT,
-05B-Chat Apache-2.0; the tag of -1B, whose layers have private FFNs (`shared_ffn = false`), is not known.

The published `num_key_value_heads` (4) is not read: every head has its own key and value. The tensors are named as in
a Llama checkpoint, the FFN either under every layer or under one of them.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from zoo.errors import ArtifactError
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors

FFN = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.(.+)")


@strict
class MobiLlamaConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama config and `shared_ffn`; by default that of the 0.5B model."""

    model_type = "mobillama"

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 22
    rms_norm_eps: float = 1e-5
    shared_ffn: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_key_value_heads = self.num_attention_heads  # whatever the file says, see above
        super().__post_init__(**kwargs)


class MobiLlamaLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama layer around an FFN that is given to it; hidden states (B, T, D) in and out."""

    def __init__(self, config: MobiLlamaConfig, layer_idx: int, ffn: nn.Module) -> None:
        super(LlamaDecoderLayer, self).__init__()  # the parent's own would make an FFN
        self.hidden_size = config.hidden_size
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = ffn
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MobiLlamaPreTrained(LlamaPreTrainedModel):  # type: ignore[misc]
    config_class = MobiLlamaConfig
    _no_split_modules = ("MobiLlamaLayer",)
    _can_record_outputs = {"hidden_states": MobiLlamaLayer, "attentions": LlamaAttention}  # noqa: RUF012


class MobiLlamaModel(MobiLlamaPreTrained, LlamaModel):  # type: ignore[misc]
    """The decoder without the head."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        ffn = LlamaMLP(config) if config.shared_ffn else None
        self.layers = nn.ModuleList(
            MobiLlamaLayer(config, index, ffn or LlamaMLP(config)) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class MobiLlamaForCausalLM(MobiLlamaPreTrained, LlamaForCausalLM):  # type: ignore[misc]
    """The decoder and its untied head; called like `LlamaForCausalLM`."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        if config.shared_ffn and config.num_hidden_layers > 1:  # so that `save_pretrained` writes it once
            self._tied_weights_keys = {
                "lm_head.weight": "model.embed_tokens.weight",
                r"model\.layers\.(?!0\.)\d+\.mlp": r"model\.layers\.0\.mlp",
            }
        self.model = MobiLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def require_sound(path: Path) -> None:
    """Refuse a checkpoint that repeats the shared FFN under several layers, but not with the same values.

    Raises:
        ArtifactError: names the first tensor that differs.
    """
    config = json.loads(text_of(path / "config.json", error=ArtifactError, most=LARGEST_DATA))
    if config.get("shared_ffn", True) is False:
        return
    places: dict[str, list[tuple[int, str, Path]]] = {}  # part of the FFN -> layer, name, file
    for file in safetensors.files_of(path):
        for name in safetensors.read_header(file):
            if found := FFN.fullmatch(name):
                places.setdefault(found[2], []).append((int(found[1]), name, file))
    differing = [other for copies in places.values() if (other := _first_other(sorted(copies)))]
    if differing:
        _, name, first = min(differing)
        raise ArtifactError(
            f"{path}: {name!r} is not {first!r}, but all layers of a MobiLlama share one FFN. If its layers have FFNs of "
            'their own, as the 1B models\' have, write "shared_ffn": false into its config.json.'
        )


def _first_other(copies: list[tuple[int, str, Path]]) -> tuple[int, str, str] | None:
    """The first of the copies that is not the first: its layer, its name, the name of the first."""
    _, first, file = copies[0]
    kept = _tensor(file, first)
    for layer, name, place in copies[1:]:
        other = _tensor(place, name)
        if other.shape != kept.shape:
            raise ArtifactError(
                f"{place}: {name!r} has shape {tuple(other.shape)}, and {first!r}, which should be the same, {tuple(kept.shape)}."
            )
        if not torch.equal(other, kept):
            return layer, name, first
    return None


def _tensor(file: Path, name: str) -> torch.Tensor:
    safetensors.require_whole(file)
    with safe_open(file, framework="pt") as opened:
        found: torch.Tensor = opened.get_tensor(name)
    return found
