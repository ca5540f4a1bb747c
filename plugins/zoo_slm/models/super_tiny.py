"""Super Tiny Language Models: a small decoder with three ways to save weights, each a switch of the config.

Paper: Super Tiny Language Models (2405.14159). The switches: one FFN for all layers (`ffn_weight_tying`), one table for
embedding and head (`tie_word_embeddings`), and bytes in place of tokens (`byte_context_window`): each BPE token is read
as its UTF-8 bytes, pooled to one vector, and all bytes of the next BPE token are written at once.
Code: written here after the paper and the facts of its repository (LeonGuertler/SuperTinyLanguageModels, MIT). No
weights were released, so names of parameters are our own, and so are the places of dropout, of which only the rate is
known (0.1 in the 50M baseline).

Legend: B batch, T BPE tokens, S byte slots of a token, N tokens of all rows, D width, C byte width, H heads, G key/value
heads, K head width, F FFN width, V vocabulary (258 for bytes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from zoo_slm.models.parts import begun

PAD, END = 256, 257  # byte values are 0 to 255
FFN_TYPES = ("swiglu", "gelu")

# a name in the repository's own configs -> ours; what has no other is left out
NAMES = {
    "hidden_dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "context_window": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "embedding_weight_tying": "tie_word_embeddings",
}
SAID_ELSEWHERE = ("group_size", "positional_encoding", "norm")  # what the architecture or another field says


@strict
class SuperTinyConfig(PreTrainedConfig):  # type: ignore[misc]
    """The defaults are those of stlm-10m. `byte_context_window` > 0 makes it byte level: that many slots for a token.

    `vocab_size` is that of the BPE tokenizer, of which a byte-level model only uses where it cuts.
    """

    model_type = "super-tiny-lm"
    keys_to_ignore_at_inference = ("cache",)

    vocab_size: int = 4000
    hidden_size: int = 384
    intermediate_size: int = 1536
    ffn_type: str = "gelu"
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 48
    max_position_embeddings: int = 2048
    rope_theta: float | int = 10000.0
    rms_norm_eps: float = 1e-6
    bias: bool = False
    ffn_weight_tying: bool = False
    tie_word_embeddings: bool = True
    dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    byte_context_window: int = 0
    byte_vocab_size: int = 258
    byte_embedding_dim: int = 128
    byte_heads: int = 8
    embedder_blocks: int = 4
    decoder_blocks: int = 7

    def __post_init__(self, **kwargs: Any) -> None:
        if self.ffn_type not in FFN_TYPES:
            raise ValueError(f"ffn_type is {self.ffn_type!r}, not one of {', '.join(FFN_TYPES)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads do not divide among {self.num_key_value_heads} key/value heads"
            )
        if self.byte_context_window and self.tie_word_embeddings:
            raise ValueError(
                "a byte-level model has no table that its head could share: set tie_word_embeddings to false"
            )
        super().__post_init__(**kwargs)


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in our names; those of the repository's own configs are understood too."""
    found = {NAMES.get(key, key): value for key, value in values.items() if key not in SAID_ELSEWHERE}
    if str(found.get("ffn_type", "")).startswith("generic"):  # the repository's word for two matrices with GELU between
        found["ffn_type"] = "gelu"
    return found


# --- core -----------------------------------------------------------------------------------------------------------


def rotary_tables(positions_BT: Tensor, config: SuperTinyConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, K / 2) of the angle by which each pair of a head turns at each position (2104.09864)."""
    steps = torch.arange(0, config.head_dim, 2, device=positions_BT.device, dtype=torch.float32) / config.head_dim
    angles = positions_BT[:, None, :, None].float() * float(config.rope_theta) ** -steps
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring entries (0 and 1, 2 and 3, ...) by its angle."""
    even, odd = x_BHTK[..., ::2], x_BHTK[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class SuperTinyAttention(nn.Module):
    """Causal grouped query attention; one matrix makes queries, keys and values, in this order."""

    is_causal = True

    def __init__(self, config: SuperTinyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        heads = self.num_heads + 2 * self.num_key_value_heads
        self.qkv_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.bias)

    def forward(self, x_BTD: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None) -> Tensor:
        heads_BHTK = self.qkv_proj(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        groups = self.num_key_value_heads
        q_BHTK, k_BGTK, v_BGTK = heads_BHTK.split((self.num_heads, groups, groups), dim=1)
        q_BHTK, k_BGTK = rotate(q_BHTK, *tables), rotate(k_BGTK, *tables)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(k_BGTK, v_BGTK, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = float(self.config.dropout) if self.training else 0.0
        mixed_BTHK, _ = attend(self, q_BHTK, k_BGTK, v_BGTK, mask, dropout=dropout, scaling=self.scaling)
        out: Tensor = self.o_proj(mixed_BTHK.flatten(2))
        return out


class SuperTinyFFN(nn.Module):
    """SwiGLU (three matrices), or two with GELU between."""

    def __init__(self, config: SuperTinyConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=config.bias) if config.ffn_type == "swiglu" else None
        self.up_proj = nn.Linear(width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up_proj(x_BTD)
        inner_BTF = F.gelu(up_BTF) if self.gate_proj is None else F.silu(self.gate_proj(x_BTD)) * up_BTF
        out: Tensor = self.down_proj(inner_BTF)
        return out


class SuperTinyLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    def __init__(self, config: SuperTinyConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SuperTinyAttention(config, layer_idx)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SuperTinyFFN(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.self_attn(self.input_layernorm(x_BTD), tables, mask, cache=cache))
        out: Tensor = x_BTD + self.dropout(self.mlp(self.post_attention_layernorm(x_BTD)))
        return out


# --- bytes ----------------------------------------------------------------------------------------------------------


class ByteAttention(nn.Module):
    """Attention of the slots of one token to one another: all to all, without rotation or biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_NSC: Tensor) -> Tensor:
        parts = self.qkv_proj(x_NSC).chunk(3, dim=-1)
        q_NHSK, k_NHSK, v_NHSK = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        out: Tensor = self.o_proj(F.scaled_dot_product_attention(q_NHSK, k_NHSK, v_NHSK).transpose(1, 2).flatten(2))
        return out


class ByteBlock(nn.Module):
    """`x = x + attention(norm(x)); x = ffn(norm(x))`: the FFN may change the width, so nothing is added to what it gives."""

    def __init__(self, width: int, out: int, config: SuperTinyConfig) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.self_attn = ByteAttention(width, config.byte_heads)
        self.post_attention_layernorm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, out, bias=False)

    def forward(self, x_NSC: Tensor) -> Tensor:
        x_NSC = x_NSC + self.self_attn(self.input_layernorm(x_NSC))
        out: Tensor = self.fc2(F.gelu(self.fc1(self.post_attention_layernorm(x_NSC))))
        return out


def numbered(blocks: Iterable[nn.Module]) -> nn.ModuleDict:
    """Blocks by number, and no list: of lists the longest would be taken for the core, however short a core is cut."""
    return nn.ModuleDict({str(index): block for index, block in enumerate(blocks)})


class ByteEmbedder(nn.Module):
    """The bytes of a token to one vector: the mean over all slots, padding included."""

    def __init__(self, config: SuperTinyConfig) -> None:
        super().__init__()
        narrow = config.byte_embedding_dim
        widths = [narrow, *[2 * narrow] * (config.embedder_blocks - 1), config.hidden_size]
        self.bytes = nn.Embedding(config.byte_vocab_size, narrow)
        self.slots = nn.Embedding(config.byte_context_window, narrow)
        self.blocks = numbered(ByteBlock(width, out, config) for width, out in pairwise(widths))

    def forward(self, ids_BTS: Tensor) -> Tensor:
        x_NSC: Tensor = (self.bytes(ids_BTS) + self.slots.weight).flatten(0, 1)
        for block in self.blocks.values():
            x_NSC = block(x_NSC)
        return x_NSC.mean(dim=1).view(*ids_BTS.shape[:2], -1)


class ByteDecoder(nn.Module):
    """One vector to all slots of the next token, side by side: hidden states (B, T, S, C) for the head."""

    def __init__(self, config: SuperTinyConfig) -> None:
        super().__init__()
        narrow = config.byte_embedding_dim
        self.spread = nn.Linear(config.hidden_size, config.byte_context_window * narrow, bias=False)
        self.slots = nn.Embedding(config.byte_context_window, narrow)
        self.blocks = numbered(ByteBlock(narrow, narrow, config) for _ in range(config.decoder_blocks))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_NSC: Tensor = self.spread(x_BTD).unflatten(-1, self.slots.weight.shape).flatten(0, 1)
        x_NSC = x_NSC + (x_NSC + self.slots.weight)  # the original adds its input twice
        for block in self.blocks.values():
            x_NSC = block(x_NSC)
        return x_NSC.view(*x_BTD.shape[:2], *self.slots.weight.shape)


# --- models ---------------------------------------------------------------------------------------------------------


class SuperTinyPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = SuperTinyConfig
    config: SuperTinyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SuperTinyLayer", "ByteBlock")
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flash_attn = True


class SuperTinyModel(SuperTinyPreTrainedModel):
    """Up to the head: hidden states (B, T, D), after the final norm; of bytes (B, T, S, C), where there is none."""

    _tied_weights_keys = {r"layers\.(?!0\.)\d+\.mlp": r"layers\.0\.mlp"}  # noqa: RUF012 (transformers reads it of the class)

    def __init__(self, config: SuperTinyConfig) -> None:
        super().__init__(config)
        bytewise = config.byte_context_window > 0
        self.embed_tokens = ByteEmbedder(config) if bytewise else nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        layers = [SuperTinyLayer(config, i) for i in range(config.num_hidden_layers)]
        if config.ffn_weight_tying:
            for layer in layers[1:]:
                for name, projection in layers[0].mlp.named_children():
                    setattr(layer.mlp, name, projection)
        self.layers = nn.ModuleList(layers)
        self.norm = None if bytewise else LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.byte_decoder = ByteDecoder(config) if bytewise else None
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Name the FFN weights that are those of layer 0; transformers itself looks only where embedding and head are tied."""
        if all_submodels:
            return dict(super().get_expanded_tied_weights_keys(all_submodels))
        names = (
            [name for name, _ in self.get_submodule("layers.0.mlp").named_parameters()]
            if self.config.ffn_weight_tying
            else []
        )
        return {f"layers.{i}.mlp.{name}": f"layers.0.mlp.{name}" for i in range(1, len(self.layers)) for name in names}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Run on tokens (B, T), the bytes of tokens (B, T, S), or vectors in their place (B, T, D).

        Args:
            attention_mask: (B, T), 0 where a token is padding; with a cache, of all tokens so far.
        """
        found = self.read(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        return BaseModelOutputWithPast(last_hidden_state=self.finish(found.last_hidden_state), cache=found.cache)

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPast:
        """Run the core: hidden states (B, T, D)."""
        wanted = (self.config.use_cache if use_cache is None else use_cache) and not self.training
        x_BTD, cache, past = begun(self, input_ids, inputs_embeds, cache, wanted)
        if position_ids is None:
            position_ids = torch.arange(past, past + x_BTD.shape[1], device=x_BTD.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        tables = rotary_tables(position_ids, self.config, x_BTD.dtype)
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, tables, mask, cache=cache)
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, cache=cache)

    def finish(self, x_BTD: Tensor) -> Tensor:
        """What the head reads: normed, or decoded to the slots of bytes."""
        assert self.norm is not None or self.byte_decoder is not None
        out: Tensor = self.norm(x_BTD) if self.norm is not None else self.byte_decoder(x_BTD)  # type: ignore[misc]
        return out


class SuperTinyForCausalLM(SuperTinyPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """With a head: logits (B, T, V), or (B, T, S, 258) of the bytes of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SuperTinyConfig) -> None:
        super().__init__(config)
        self.model = SuperTinyModel(config)
        bytewise = config.byte_context_window > 0
        sizes = (
            (config.byte_embedding_dim, config.byte_vocab_size) if bytewise else (config.hidden_size, config.vocab_size)
        )
        self.lm_head = nn.Linear(*sizes, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Run on tokens (B, T), or the bytes of tokens (B, T, S).

        Args:
            labels: of the shape of the input, and shifted here; -100 where a place does not count.
            logits_to_keep: only the last so many positions (0: all), or the positions themselves.
        """
        found = self.model.read(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        x_BTD = found.last_hidden_state if isinstance(kept, int) else found.last_hidden_state[:, kept]
        logits = self.lm_head(self.model.finish(x_BTD))
        loss = None if labels is None else next_token_loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=found.cache)

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """Continue tokens as transformers does; bytes (B, T, S) by `write`, which takes fewer options."""
        if not self.config.byte_context_window:
            return super().generate(inputs, *args, **options)
        given = options.pop("input_ids", inputs)
        if args or given is None:
            raise ValueError(
                "A byte-level model generates from the bytes of tokens (B, T, S); other arguments go by name."
            )
        return self.write(given, **options)

    @torch.no_grad()
    def write(self, input_ids: Tensor, *, attention_mask: Tensor | None = None, max_new_tokens: int = 20) -> Tensor:
        """Continue the bytes of tokens (B, T, S) greedily, a whole token of S bytes a step: (B, T + new, S).

        A row that has written the end of text goes on as end and padding.
        """
        step_BTS, cache = input_ids, None
        over_B = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        end_S = F.pad(input_ids.new_tensor([END]), (0, input_ids.shape[-1] - 1), value=PAD)
        mask = (
            torch.ones(input_ids.shape[:2], dtype=torch.long, device=input_ids.device)
            if attention_mask is None
            else attention_mask
        )
        for _ in range(max_new_tokens):
            places = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -step_BTS.shape[1] :]
            out = self(
                input_ids=step_BTS,
                attention_mask=mask,
                position_ids=places,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.cache
            step_BTS = torch.where(over_B[:, None, None], end_S, out.logits.argmax(-1))
            over_B |= step_BTS[:, 0, 0] == END
            input_ids, mask = torch.cat([input_ids, step_BTS], dim=1), F.pad(mask, (0, 1), value=1)
            if bool(over_B.all()):
                break
        return input_ids


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of what each position predicts against the labels of the next: (B, T, V) or (B, T, S, V)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, -2).float(), labels[:, 1:].flatten(), ignore_index=-100)


def reconstruction_loss(model: SuperTinyForCausalLM, input_ids: Tensor) -> Tensor:
    """The original's second loss: head straight after embedder is to give back the bytes (B, T, S) that were read.

    As in the original the end of text is left out, while padding counts.
    """
    logits_BTSV = model.lm_head(model.model.finish(model.model.embed_tokens(input_ids)))
    return F.cross_entropy(logits_BTSV.flatten(0, -2).float(), input_ids.flatten(), ignore_index=END)
