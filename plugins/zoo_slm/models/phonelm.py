"""PhoneLM: a Llama decoder whose shape was chosen for phones, with a ReLU gate and rotary tables of int8 precision.

Paper: PhoneLM (2411.05046). Code: written here over transformers' Llama parts (Apache-2.0). Weights: mllmTeam/PhoneLM-*,
Apache-2.0, under the names used here, which are Llama's.

Two things differ from Llama:

- The feed-forward layer is `down(relu(gate(x)) * up(x))`: Llama's with `hidden_act = "relu"`, whose many zeros a phone
  need not multiply.
- The rotary tables are rounded: with `cmax = max|cos|` and `smax = max|sin|` over the positions of a call,
  `cos' = round(cos / cmax * 127) / 127 * cmax`, and `sin'` alike. So **what a position's rotation is depends on the other
  positions of the call**: a decoding step, which sees one position, rounds a little differently from a pass over the
  whole text, and cached decoding is near a whole pass, not equal to it. That is how the published model computes.
  Not confirmed: how it takes the maxima of a batch. Here every row has its own, so that a row says the same in any
  batch (with padding on the left too, since padding repeats position 0).
  `rope_int8 = false` leaves the tables alone; cached decoding then equals a whole pass.

Legend: B batch, T tokens, K head width.
"""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRotaryEmbedding

LEVELS = 127  # int8, symmetric


@strict
class PhoneLMConfig(LlamaConfig):  # type: ignore[misc]
    """Defaults: PhoneLM-0.5B. The ids of special tokens are the tokenizer's."""

    model_type = "phonelm"

    vocab_size: int = 49152
    hidden_size: int = 1024
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "relu"
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    rope_int8: bool = True


class PhoneLMRotaryEmbedding(LlamaRotaryEmbedding):  # type: ignore[misc]
    """Rotary tables, rounded to the 255 values of an int8 that spans the largest entry of each table in this call."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (B, T, K), in the dtype of `x`, of positions (B, T); they are computed in float32."""
        cos_BTK, sin_BTK = super().forward(x.new_empty(0, dtype=torch.float32), position_ids)
        if self.config.rope_int8:
            cos_BTK, sin_BTK = _rounded(cos_BTK), _rounded(sin_BTK)
        return cos_BTK.to(x.dtype), sin_BTK.to(x.dtype)


def _rounded(table_BTK: Tensor) -> Tensor:
    """Round every row's table to int8 steps of its largest entry. One of zeros (the sines of position 0) stays so."""
    most_B11 = table_BTK.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(table_BTK.dtype).tiny)
    return (table_BTK / most_B11 * LEVELS).round() / LEVELS * most_B11


class PhoneLMModel(LlamaModel):  # type: ignore[misc]
    """The body: Llama's, but for the rotary tables."""

    config_class = PhoneLMConfig

    def __init__(self, config: PhoneLMConfig) -> None:
        super().__init__(config)
        self.rotary_emb = PhoneLMRotaryEmbedding(config)


class PhoneLMForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The body and its head, which is the token table."""

    config_class = PhoneLMConfig

    def __init__(self, config: PhoneLMConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not LlamaForCausalLM's, which would build Llama's body first
        self.model = PhoneLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
