"""Tele-FLM: a Llama whose embeddings and logits are scaled.

Papers: Tele-FLM Technical Report (2404.16645) for 52B; 52B to 1T: Lessons Learned via Tele-FLM Series (2407.02783) for
the instruct model and for 1T. The scales are those of muP, found on small proxies:

    h = embed(ids) * input_mult
    logits = lm_head(norm(h)) * output_mult / mup_scale_factor

Everything else is a Llama (RMSNorm, SwiGLU, rotary positions, no biases, all heads with their own keys and values, an
untied head), and so are the names of the tensors.
Code: written here over transformers' Llama (Apache-2.0), after the papers and vLLM's description of the output scale.
Weights: CofeAI/Tele-FLM, FLM-2-52B-Instruct-2407 and Tele-FLM-1T, all Apache-2.0. The 102B stage was not published.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaPreTrainedModel

from zoo_slm.models.parts import ScaledLlama


@strict
class TeleFLMConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama config and the scales, which `use_mup = false` switches off; by default that of the 52B model."""

    model_type = "teleflm"

    vocab_size: int = 80384
    hidden_size: int = 8192
    intermediate_size: int = 21824
    num_hidden_layers: int = 64
    num_attention_heads: int = 64
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    use_mup: bool = True
    input_mult: int | float = 1.0
    output_mult: int | float = 0.5
    mup_scale_factor: int | float = 16.0


class TeleFLMPreTrained(LlamaPreTrainedModel):  # type: ignore[misc]
    config_class = TeleFLMConfig


class TeleFLMModel(TeleFLMPreTrained, ScaledLlama):
    """The decoder up to what the head reads."""

    def __init__(self, config: TeleFLMConfig) -> None:
        super().__init__(config)
        self.input_scale = config.input_mult if config.use_mup else 1.0
        self.head_divisor = config.mup_scale_factor / config.output_mult if config.use_mup else 1.0


class TeleFLMForCausalLM(TeleFLMPreTrained, LlamaForCausalLM):  # type: ignore[misc]
    """The decoder and its head; called like `LlamaForCausalLM`."""

    def __init__(self, config: TeleFLMConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = TeleFLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
