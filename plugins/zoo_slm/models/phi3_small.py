"""Phi-3-small: a decoder with block-sparse attention in every other layer, a gegelu gate and muP multipliers.

Paper: Phi-3 Technical Report (2404.14219). Code: written here after the report, the public config and what vLLM's
model file and mask helpers compute (Apache-2.0), over transformers' rotary tables and attention functions (Apache-2.0).
Weights: microsoft/Phi-3-small-8k-instruct and -128k-instruct, MIT.

    h = embed(ids) * mup_embedding_multiplier
    h = h + dense(attention(input_layernorm(h)));  h = h + down(gegelu(up(post_attention_layernorm(h))))
    logits = lm_head(final_layernorm(h)) / mup_width_multiplier

Norms are LayerNorms with bias; every linear layer but the head, which is the token table, has a bias. Scores are scaled
by mup_attn_multiplier / K, not by 1 / sqrt(K). Rotary positions pair entry i with i + K / 2 of the whole head.

**Fused rows.** `query_key_value` gives, for each of the G key/value heads, the H / G queries that share it, then its key,
then its value. `up_proj` gives 2F columns that alternate, a in the even ones and b in the odd ones:
`a' = min(a, limit); b' = clamp(b, -limit, limit); gegelu = a' * sigmoid(1.702 a') * (b' + 1)`. One public runtime calls
it without the limit; here the config decides (`gegelu_limit = null`: none).

**Block-sparse attention.** Layer number l, counted from 1, is dense where dense_attention_every_n_layers divides l. In the
others head h of H lets the query at place i see the key at place j where

    j <= i  and  (i // b - j // b < local  or  (j // b + h * max(1, stride // H) + 1) % stride == 0)

with b = blocksparse_block_size, local = blocksparse_num_local_blocks, stride = blocksparse_vert_stride, and no shift by
h where blocksparse_homo_head_pattern is true. Places count the real tokens of a row, whatever came in one call and whatever
padding stands before them, so that a text is cut into the same blocks with a cache and in any batch. (How the published
code counts a padded batch is not confirmed; without padding there is one way.) The pattern is handed to attention as a
mask, of H * Q * S bytes for Q queries on S keys; texts that fit into the local blocks (1024 tokens) need none.
Several texts packed into one row are read as one text.

**128k.** Its LongRoPE factor lists are not known to the catalogue. A config that brings them (`rope_scaling`) is followed
by transformers' rule, which takes the long list beyond the original length; one that does not, as the catalogue's, gets
plain rotary positions, which is right in shape and not what was trained.

Not confirmed: the names of the tensors beyond what vLLM's file uses (they are those below), and where dropout sits in
training. `dummy_token_indices` (ids without a meaning, whose logits vLLM sets to -inf) is not read.

Legend: B batch, T tokens, Q queries, S keys so far, D width, H heads, G key/value heads, N queries of a group, K head width, F FFN width.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from zoo.errors import RequestError
from zoo_slm.models.parts import CausalHead, begun


@strict
class Phi3SmallConfig(PreTrainedConfig):  # type: ignore[misc]
    """The fields of the published config; by default those of the 8k model. The ids of special tokens are the tokenizer's."""

    model_type = "phi3small"
    keys_to_ignore_at_inference = ("cache",)
    attribute_map = {"intermediate_size": "ff_intermediate_size"}  # noqa: RUF012

    vocab_size: int = 100352
    hidden_size: int = 4096
    ff_intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    max_position_embeddings: int = 8192
    rope_embedding_base: int | float = 1_000_000
    rope_position_scale: int | float = 1.0
    rope_parameters: dict[str, Any] | None = None  # made of the two above and rope_scaling
    hidden_act: str = "gegelu"
    gegelu_limit: int | float | None = 20.0
    layer_norm_epsilon: float = 1e-5
    mup_use_scaling: bool = True
    mup_embedding_multiplier: int | float | None = 10.0
    mup_attn_multiplier: int | float = 1.0
    mup_width_multiplier: int | float | None = 8.0
    blocksparse_block_size: int = 64
    blocksparse_num_local_blocks: int = 16
    blocksparse_vert_stride: int = 8
    blocksparse_homo_head_pattern: bool = False
    dense_attention_every_n_layers: int | None = 2
    embedding_dropout_prob: int | float = 0.1
    attention_dropout_prob: int | float = 0.0
    ffn_dropout_prob: int | float = 0.1
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        scaling = kwargs.pop("rope_scaling", None)
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_theta": self.rope_embedding_base, **self._scaling(scaling)}
        super().__post_init__(**kwargs)

    def _scaling(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """What transformers calls the published scaling of positions."""
        if given is None and self.rope_position_scale == 1:
            return {"rope_type": "default"}
        if given is None:
            return {"rope_type": "linear", "factor": float(self.rope_position_scale)}
        kind = given.get("rope_type") or given.get("type")
        lists = [given.get(name) for name in ("short_factor", "long_factor")]
        multipliers = [given.get(name) for name in ("short_mscale", "long_mscale")]
        if kind not in ("su", "longrope") or not all(isinstance(factors, list) for factors in lists):
            raise RequestError(
                f"rope_scaling of type {kind!r} is not one Phi-3-small is known with: longrope, with short_factor and long_factor."
            )
        if multipliers[0] != multipliers[1]:
            raise RequestError(
                f"rope_scaling has two multipliers, {multipliers[0]} and {multipliers[1]}; only one for all lengths is supported."
            )
        original = int(given.get("original_max_position_embeddings") or 8192)
        found = {
            "rope_type": "longrope",
            "short_factor": lists[0],
            "long_factor": lists[1],
            "original_max_position_embeddings": original,
            "factor": self.max_position_embeddings / original,
        }
        return found if multipliers[0] is None else {**found, "attention_factor": float(multipliers[0])}

    def validate_architecture(self) -> None:
        """Refuse sizes that do not go together."""
        if self.hidden_act != "gegelu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}; Phi-3-small has gegelu.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads cannot share {self.num_key_value_heads} key/value heads evenly."
            )


class Phi3SmallAttention(nn.Module):
    """Grouped attention; whether it is sparse is a matter of the mask."""

    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.head_dim: int = config.head_dim or config.hidden_size // config.num_attention_heads
        self.num_key_value_groups: int = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.mup_attn_multiplier / self.head_dim if config.mup_use_scaling else self.head_dim**-0.5
        self.is_causal = True
        rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows)
        self.dense = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        turns: tuple[Tensor, Tensor],
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the heads found (B, T, D), and their weights where the attention function gives them."""
        shared = self.num_key_value_groups
        qkv_BTGNK = self.query_key_value(x_BTD).unflatten(-1, (-1, shared + 2, self.head_dim))
        q_BHTK = qkv_BTGNK[:, :, :, :shared].flatten(2, 3).transpose(1, 2)
        k_BGTK, v_BGTK = (qkv_BTGNK[:, :, :, i].transpose(1, 2) for i in (shared, shared + 1))
        q_BHTK, k_BGTK = apply_rotary_pos_emb(q_BHTK, k_BGTK, *turns)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(k_BGTK, v_BGTK, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout_prob if self.training else 0.0
        found_BTHK, weights = attend(
            self, q_BHTK, k_BGTK, v_BGTK, mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        out_BTD: Tensor = self.dense(found_BTHK.flatten(2))
        return out_BTD, weights


class Phi3SmallMLP(nn.Module):
    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__()
        self.limit, self.dropout = config.gegelu_limit, config.ffn_dropout_prob
        self.interleaved = True  # how detection reads up_proj
        self.up_proj = nn.Linear(config.hidden_size, 2 * config.ff_intermediate_size)
        self.down_proj = nn.Linear(config.ff_intermediate_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) in and out."""
        out_BTD: Tensor = self.down_proj(gegelu(self.up_proj(x_BTD), self.limit))
        return F.dropout(out_BTD, self.dropout, self.training)


def gegelu(x: Tensor, limit: float | None) -> Tensor:
    """Gate (..., 2F), a and b alternating, to (..., F): see the head of this file."""
    a, b = x[..., ::2], x[..., 1::2]
    if limit is not None:
        a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    return a * torch.sigmoid(1.702 * a) * (b + 1)


class Phi3SmallLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and FFN, each on the norm of what it is added to."""

    def __init__(self, config: Phi3SmallConfig, layer: int) -> None:
        super().__init__()
        every = config.dense_attention_every_n_layers
        # 0: a dense layer, wherever it is moved
        self.stride = 0 if every and (layer + 1) % every == 0 else config.blocksparse_vert_stride
        self.self_attn = Phi3SmallAttention(config, layer)
        self.mlp = Phi3SmallMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, h_BTD: Tensor, *, masks: dict[bool, Tensor | None], **kwargs: Any) -> Tensor:
        """(B, T, D) in and out; `masks` are the one of sparse layers (True) and of dense ones (False)."""
        h_BTD = h_BTD + self.self_attn(self.input_layernorm(h_BTD), masks[self.stride > 0], **kwargs)[0]
        out_BTD: Tensor = h_BTD + self.mlp(self.post_attention_layernorm(h_BTD))
        return out_BTD


class Phi3SmallPreTrained(PreTrainedModel):  # type: ignore[misc]
    config_class = Phi3SmallConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Phi3SmallLayer",)
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": Phi3SmallLayer, "attentions": Phi3SmallAttention}  # noqa: RUF012


class Phi3SmallModel(Phi3SmallPreTrained):
    """The decoder up to what the head reads: the logits' division is done here, on the hidden states."""

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Phi3SmallLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.embedding_scale = config.mup_embedding_multiplier or 1.0
        self.head_divisor = config.mup_width_multiplier or 1.0
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run on tokens (B, T), or on rows of the table (B, T, D), which are scaled as the tokens' are."""
        e_BTD, cache, past = begun(self, input_ids, inputs_embeds, cache, use_cache)
        if position_ids is None:
            position_ids = torch.arange(e_BTD.shape[1], device=e_BTD.device)[None] + past
        masks = self._masks(e_BTD, attention_mask, cache, past)
        h_BTD = F.dropout(e_BTD * self.embedding_scale, self.config.embedding_dropout_prob, self.training)
        turns = self.rotary_emb(h_BTD, position_ids)
        for layer in self.layers:
            h_BTD = layer(h_BTD, masks=masks, turns=turns, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(h_BTD) / self.head_divisor, cache=cache)

    def _masks(
        self, e_BTD: Tensor, attention_mask: Tensor | None, cache: Cache | None, past: int
    ) -> dict[bool, Tensor | None]:
        """The masks of sparse layers (True) and of dense ones (False), of the kind that the attention function takes."""
        config = self.config
        keys = cache.get_mask_sizes(e_BTD.shape[1], 0)[0] if cache is not None else e_BTD.shape[1]
        given = {"config": config, "inputs_embeds": e_BTD, "attention_mask": attention_mask, "cache": cache}
        dense = create_causal_mask(**given)
        if keys <= config.blocksparse_num_local_blocks * config.blocksparse_block_size:  # the local blocks hold all
            return {True: dense, False: dense}
        full: Tensor = create_causal_mask(**given, allow_is_causal_skip=False)
        if attention_mask is None:  # then all rows have one pattern
            full = full[:1]
        seen = full if full.dtype == torch.bool else full == 0
        # The last query sees every real token so far: what it sees, counted, are their places.
        pattern_BHQS = block_pattern(seen[:, 0, -1].cumsum(-1) - 1, config, first=past, queries=e_BTD.shape[1])
        if full.dtype == torch.bool:
            return {True: full & pattern_BHQS, False: dense}
        return {True: full.masked_fill(~pattern_BHQS, torch.finfo(full.dtype).min), False: dense}


def block_pattern(places_BS: Tensor, config: Phi3SmallConfig, *, first: int, queries: int) -> Tensor:
    """Say which keys, at places (B, S), every head lets the `queries` from index `first` on see: (B, H, Q, S), before causality."""
    stride, heads = config.blocksparse_vert_stride, config.num_attention_heads
    step = 0 if config.blocksparse_homo_head_pattern else max(1, stride // heads)
    shift_H1 = (torch.arange(heads, device=places_BS.device) * step)[:, None]
    block_BS = places_BS.div(config.blocksparse_block_size, rounding_mode="floor")
    near_BQS = block_BS[:, first : first + queries, None] - block_BS[:, None] < config.blocksparse_num_local_blocks
    column_BHS = (block_BS[:, None] + shift_H1 + 1) % stride == 0
    return near_BQS[:, None] | column_BHS[:, :, None]


class Phi3SmallForCausalLM(CausalHead, Phi3SmallPreTrained, GenerationMixin):  # type: ignore[misc]
    """The decoder and its head, which is the token table."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Phi3SmallConfig) -> None:
        super().__init__(config)
        self.model = Phi3SmallModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
