"""SlimLM: an MPT decoder that learns its positions, with biases.

Paper: SlimLM, an efficient small language model for on-device document assistance (2411.09944). Code: written here
after the report and what llm-foundry's MPT (Apache-2.0), which the authors trained with, computes; transformers' own
MPT knows ALiBi only, and no biases. Weights: the 125M size in github:ThangPM/SlimLM, MIT, as a pickle file, which is not
read; its index names safetensors with the tensors below. Widths of 270M and 450M are not public, no other size is.

    h = wte(ids) + wpe(places)
    h = h + attn(norm_1(h));  h = h + down_proj(gelu(up_proj(norm_2(h))))
    logits = wte(norm_f(h))

LayerNorms (computed in the model's own precision, which llm-foundry calls low_precision_layernorm) and linear layers have
biases unless `no_bias`; the GELU is exact; Wqkv holds all queries, then all keys, then all values. Places count the real
tokens of a row, so padding before a text does not move it; there are max_seq_len of them and no more.

Legend: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from zoo.errors import RequestError
from zoo_slm.models.parts import CausalHead, begun

# llm-foundry's name -> ours
NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
    "attn_pdrop": "attention_dropout",
    "norm_eps": "layer_norm_epsilon",
}
# What llm-foundry can also build, and what such an option says where a model does without it.
ABSENT: dict[str, tuple[Any, ...]] = {
    "alibi": (False, None),
    "rope": (False, None),
    "qk_ln": (False, None),
    "qk_gn": (False, None),
    "clip_qkv": (None,),
    "softmax_scale": (None,),
    "prefix_lm": (False, None),
    "attn_uses_sequence_id": (False, None),
    "sliding_window_size": (-1, None),
    "attn_type": ("multihead_attention",),
    "learned_pos_emb": (True,),
    "logit_scale": (None,),
    "embedding_fraction": (1, 1.0),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "norm": ("low_precision_layernorm", "layernorm"),
    "ffn_type": ("mptmlp",),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "ffn_act_fn": (None, {"name": "gelu"}, {"name": "gelu", "approximate": "none"}),
}
# Nested tables, and what only matters to the other library or repeats the above in words.
TABLES = ("attn_config", "ffn_config")
UNREAD = (
    "attn_impl",
    "alibi_bias_max",
    "rope_theta",
    "rope_impl",
    "rope_dail_config",
    "rope_hf_config",
    "fc_type",
    "ffn",
    "init_config",
    "init_device",
    "use_pad_tok_in_ffn",
    "verbose",
    "d_model_inferred",
)


@strict
class SlimLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """Names as transformers has them, see `translated` for llm-foundry's; by default the 125M model."""

    model_type = "slimlm"
    keys_to_ignore_at_inference = ("cache",)

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int | None = None  # 4 * hidden_size
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 2048
    layer_norm_epsilon: float = 1e-5
    no_bias: bool = False
    emb_pdrop: int | float = 0.0
    resid_pdrop: int | float = 0.0
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse sizes that do not go together."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"a width of {self.hidden_size} does not divide into {self.num_attention_heads} heads.")


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in llm-foundry's names, its tables nested or flat, in those of `SlimLMConfig`; one in ours as it is.

    Raises:
        RequestError: the config lacks the width, or has an option that SlimLM does without.
    """
    values: dict[str, Any] = {key: value for key, value in config.items() if key not in TABLES}
    for table in TABLES:
        if not isinstance(found := config.get(table) or {}, dict):
            raise RequestError(f"This MPT config has {table} = {found!r}, which should be a table of options.")
        values |= found
    for option, allowed in ABSENT.items():
        if option in values and (found := values.pop(option)) not in allowed:
            raise RequestError(
                f"This MPT config has {option} = {found!r}; SlimLM does without, and no other MPT with learned positions is known here."
            )
    values = {NAMES.get(key, key): value for key, value in values.items() if key not in UNREAD}
    if "hidden_size" not in values and {"num_hidden_layers", "num_attention_heads"} & values.keys():
        raise RequestError(
            "This MPT config does not say how wide the model is (d_model); for SlimLM 270M and 450M that is not public."
        )
    heads, groups = values.get("num_attention_heads"), values.pop("kv_n_heads", None)
    if groups not in (None, heads):
        raise RequestError(
            f"This MPT config has kv_n_heads = {groups!r} beside {heads!r} heads; every head of SlimLM has its own key and value."
        )
    ratio = values.pop("expansion_ratio", None) if "hidden_size" in values else None
    if not isinstance(ratio, int | float | None):
        raise RequestError(f"This MPT config has expansion_ratio = {ratio!r}, which is not a number.")
    if ratio is not None:
        values.setdefault("intermediate_size", int(ratio * values["hidden_size"]))
    return values


class SlimLMAttention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, config: SlimLMConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.head_dim: int = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        self.is_causal = True
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=not config.no_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=not config.no_bias)

    def forward(
        self, x_BTD: Tensor, mask: Tensor | None, cache: Cache | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the heads found (B, T, D), and their weights where the attention function gives them."""
        q_BHTK, k_BHTK, v_BHTK = self.Wqkv(x_BTD).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k_BHTK, v_BHTK = cache.update(k_BHTK, v_BHTK, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        found_BTHK, weights = attend(
            self, q_BHTK, k_BHTK, v_BHTK, mask, dropout=dropout, scaling=self.head_dim**-0.5, **kwargs
        )
        out_BTD: Tensor = self.out_proj(found_BTHK.flatten(2))
        return out_BTD, weights


class SlimLMMLP(nn.Module):
    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=not config.no_bias)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=not config.no_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) in and out."""
        out_BTD: Tensor = self.down_proj(F.gelu(self.up_proj(x_BTD)))
        return out_BTD


class SlimLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and FFN, each on the norm of what it is added to."""

    def __init__(self, config: SlimLMConfig, layer: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = _norm(config), _norm(config)
        self.attn = SlimLMAttention(config, layer)
        self.ffn = SlimLMMLP(config)
        self.dropout = config.resid_pdrop

    def forward(self, h_BTD: Tensor, mask: Tensor | None, cache: Cache | None = None, **kwargs: Any) -> Tensor:
        """(B, T, D) in and out."""
        h_BTD = h_BTD + F.dropout(
            self.attn(self.norm_1(h_BTD), mask, cache=cache, **kwargs)[0], self.dropout, self.training
        )
        return h_BTD + F.dropout(self.ffn(self.norm_2(h_BTD)), self.dropout, self.training)


def _norm(config: SlimLMConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, bias=not config.no_bias)


class SlimLMPreTrained(PreTrainedModel):  # type: ignore[misc]
    config_class = SlimLMConfig
    base_model_prefix = "transformer"
    _input_embed_layer = "wte"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SlimLMBlock",)
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": SlimLMBlock, "attentions": SlimLMAttention}  # noqa: RUF012


class SlimLMModel(SlimLMPreTrained):
    """The decoder up to what the head reads."""

    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(SlimLMBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm_f = _norm(config)
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
        """Run on tokens (B, T), or on rows of the table (B, T, D); places (B, T) are counted unless they are given.

        Raises:
            RequestError: the text is longer than the table of positions.
        """
        e_BTD, cache, past = begun(self, input_ids, inputs_embeds, cache, use_cache)
        length, most = past + e_BTD.shape[1], self.wpe.num_embeddings
        if length > most:
            raise RequestError(
                f"This model has learned {most} positions; with this call the text is {length} tokens long."
            )
        if position_ids is None:
            position_ids = _places(attention_mask, length, e_BTD.device)[:, past:]
        mask = create_causal_mask(config=self.config, inputs_embeds=e_BTD, attention_mask=attention_mask, cache=cache)
        h_BTD = F.dropout(e_BTD + self.wpe(position_ids), self.config.emb_pdrop, self.training)
        for block in self.blocks:
            h_BTD = block(h_BTD, mask, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm_f(h_BTD), cache=cache)


def _places(attention_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Number the real tokens of every row from 0: (B or 1, length)."""
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(length, device=device)[None]
    return (attention_mask[:, :length].long().cumsum(-1) - 1).clamp_min(0)


class SlimLMForCausalLM(CausalHead, SlimLMPreTrained, GenerationMixin):  # type: ignore[misc]
    """The decoder and its head, which is the token table."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: SlimLMConfig) -> None:
        super().__init__(config)
        self.transformer = SlimLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
