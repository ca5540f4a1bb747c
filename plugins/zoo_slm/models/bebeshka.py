"""Bebeshka: RoBERTa whose positions are distances, scored against queries and keys.

Paper: Mini Minds: Exploring Bebeshka and Zlata Baby Models (2311.03216); the scores are "method 4" of Huang et al.
(Improve Transformer Models with Better Relative Position Embeddings, 2009.13658). Code: transformers' own RoBERTa
(Apache-2.0), of which two parts are replaced here, since transformers 5 no longer has `relative_key_query`. Weights:
iproskurina/bebeshka, whose tensors have these very names; no licence is stated there. Zlata, its sister, is a plain GPT-2.

Legend: B batch, T tokens (I of the query, J of the key), D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import (
    RobertaEmbeddings,
    RobertaForMaskedLM,
    RobertaModel,
    RobertaSelfAttention,
    eager_attention_forward,
)


@strict
class BebeshkaConfig(RobertaConfig):  # type: ignore[misc]
    """The defaults are those of the one published model."""

    model_type = "bebeshka"

    vocab_size: int = 8192
    hidden_size: int = 560
    intermediate_size: int = 1412
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float | int = 0.15
    attention_probs_dropout_prob: float | int = 0.3
    max_position_embeddings: int = 128
    type_vocab_size: int = 1
    position_embedding_type: str = "relative_key_query"
    mlm_probability: float = 0.135  # share of tokens that were masked in training
    pad_token_id: int | None = 1
    bos_token_id: int | None = 3
    eos_token_id: int | list[int] | None = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.position_embedding_type != "relative_key_query" or self.is_decoder:
            raise ValueError(
                "Bebeshka is an encoder with position_embedding_type relative_key_query; others are transformers' own RoBERTa"
            )
        super().__post_init__(**kwargs)


class BebeshkaEmbeddings(RobertaEmbeddings):  # type: ignore[misc]
    """Tokens and their type, normed. The position table is there, as in the published files, and is not read."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_length: int = 0,
    ) -> Tensor:
        words_BTD = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if words_BTD.shape[1] > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"{words_BTD.shape[1]} tokens are more than the {self.position_embeddings.num_embeddings} that the model takes."
            )
        kinds = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        out: Tensor = self.dropout(self.LayerNorm(words_BTD + kinds))
        return out


class BebeshkaSelfAttention(RobertaSelfAttention):  # type: ignore[misc]
    """Scores (q_i k_j + q_i E_ij + k_j E_ij) / sqrt(K), where E_ij is the vector of the distance i - j; each layer has its own."""

    def __init__(self, config: BebeshkaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.farthest = config.max_position_embeddings - 1
        self.distance_embedding = nn.Embedding(2 * self.farthest + 1, self.attention_head_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        parts = (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
        q_BHTK, k_BHTK, v_BHTK = (part.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2) for part in parts)
        bias_BHIJ = with_mask(self.distance_scores(q_BHTK, k_BHTK) * self.scaling, attention_mask)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout.p if self.training else 0.0
        mixed_BTHK, weights = attend(
            self, q_BHTK, k_BHTK, v_BHTK, bias_BHIJ, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return mixed_BTHK.flatten(2), weights

    def distance_scores(self, q_BHTK: Tensor, k_BHTK: Tensor) -> Tensor:
        """q_i E_ij + k_j E_ij: (B, H, T, T)."""
        places_T = torch.arange(q_BHTK.shape[2], device=q_BHTK.device)
        table_IJK = self.distance_embedding(places_T[:, None] - places_T[None, :] + self.farthest)
        of_query = torch.einsum("bhik,ijk->bhij", q_BHTK, table_IJK)
        return of_query + torch.einsum("bhjk,ijk->bhij", k_BHTK, table_IJK)


def with_mask(bias_BHIJ: Tensor, mask: Tensor | None) -> Tensor:
    """Add a mask of either kind that transformers makes: true where to look, or a number to add."""
    if mask is None:
        return bias_BHIJ
    return (
        bias_BHIJ.masked_fill(~mask, torch.finfo(bias_BHIJ.dtype).min) if mask.dtype == torch.bool else bias_BHIJ + mask
    )


class BebeshkaModel(RobertaModel):  # type: ignore[misc]
    config_class = BebeshkaConfig
    _supports_flash_attn = False  # no kernel of theirs takes scores beside the mask
    _supports_flex_attn = False

    def __init__(self, config: BebeshkaConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = BebeshkaEmbeddings(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.attention.self = BebeshkaSelfAttention(config, index)
        self.post_init()


class BebeshkaForMaskedLM(RobertaForMaskedLM):  # type: ignore[misc]
    """With the masked-LM head, whose matrix is the token table: logits (B, T, V)."""

    config_class = BebeshkaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: BebeshkaConfig) -> None:
        super().__init__(config)
        self.roberta = BebeshkaModel(config)
        self.post_init()
