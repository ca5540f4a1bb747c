"""What several architectures here have in common: a Llama body whose ends are scaled, and a head on a body of our own.

Legend: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlamaModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple


class ScaledLlama(LlamaModel):  # type: ignore[misc]
    """A Llama up to what the head reads: embeddings times `input_scale`, hidden states over `head_divisor`, as in muP (2203.03466).

    The logits are scaled here, before the head, so that the head alone is the last step, as everywhere.
    """

    input_scale: float = 1.0
    head_divisor: float = 1.0

    @can_return_tuple  # type: ignore[untyped-decorator]
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
        """As `LlamaModel`; hidden states are (B, T, D). Embeddings that are given are taken as they are, without the scale."""
        if input_ids is not None and inputs_embeds is None:
            input_ids, inputs_embeds = None, self.embed_tokens(input_ids) * self.input_scale
        found = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        found.last_hidden_state = found.last_hidden_state / self.head_divisor
        return found


def begun(
    body: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None, cache: Cache | None, use_cache: bool | None
) -> tuple[Tensor, Cache | None, int]:
    """What the pass of a body begins with: embeddings (B, T, D), the cache if there is to be one, and the tokens it holds.

    Raises:
        ValueError: both tokens and embeddings are given, or neither.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds.")
    embedded_BTD = body.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
    if use_cache and cache is None:
        cache = DynamicCache(config=body.config)
    return embedded_BTD, cache, int(cache.get_seq_length()) if cache is not None else 0


class CausalHead:
    """`forward` of a language model: its body, then `lm_head`."""

    base_model: Any
    lm_head: Any
    loss_function: Any
    config: Any

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run on tokens (B, T): logits (B, T, V) of all places, or of the last `logits_to_keep`, and the loss where `labels` are given."""
        found = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(found.last_hidden_state, logits_to_keep))
        loss = (
            None
            if labels is None
            else self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=found.cache, hidden_states=found.hidden_states, attentions=found.attentions
        )
