"""MiniCPM, first generation: a Llama with three constants; dense, sparse, long-context and mixture of experts.

Paper: MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies (2404.06395). The
constants come from its tuning of hyperparameters on small proxies (Tensor Programs, table "Operations" of the paper),
L layers, D width:

    h = embed(ids) * scale_emb
    h = h + branch(norm(h)) * scale_depth / sqrt(L)        for attention and for the FFN of every layer
    logits = lm_head(norm(h) / (D / dim_model_base))

Versions, each a matter of the config: S (`hidden_act = "fatrelu"`, ProSparse: gate values up to `hidden_act_param`
become 0), 128k (untied head, dynamic NTK scaling of the rotary base, so that a text longer than
`max_position_embeddings` changes the frequencies of all its positions and what was cached before keeps its old ones),
MoE (`num_experts` FFNs and a router: softmax over the router's scores, the best `num_experts_per_tok` renormalised
to sum 1).
Code: written here over transformers' Llama (Apache-2.0), after the paper and the shapes of the published models.
Weights: openbmb/MiniCPM-*, Apache-2.0 in the current repository (older releases carried a model licence of their own).

Tensors are named as in a Llama checkpoint. Those of the MoE version (`mlp.gate`, `mlp.experts.0.w1` gate, `.w3` up,
`.w2` down) are named as public runtimes read them (vLLM's minicpm); no published file was at hand to confirm it. That
block is Mixtral's, so its experts are held as Mixtral's are, stacked, and read and saved by the same conversion.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, initialization
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralPreTrainedModel, MixtralSparseMoeBlock

from zoo.errors import RequestError
from zoo_slm.models.parts import ScaledLlama


@strict
class MiniCPMConfig(LlamaConfig):  # type: ignore[misc]
    """A Llama config, the three constants, and what the versions add; by default that of the 1B model.

    `num_experts` is 0 for a dense model; `hidden_act_param` is the threshold of "fatrelu".
    """

    model_type = "minicpm"

    vocab_size: int = 73440
    hidden_size: int = 1536
    intermediate_size: int = 3840
    num_hidden_layers: int = 52
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096
    initializer_range: float = 0.1
    rms_norm_eps: float = 1e-5
    # published configs do not say so, except that of the 128k version, whose head is untied
    tie_word_embeddings: bool = True
    scale_emb: int | float = 12
    scale_depth: int | float = 1.4
    dim_model_base: int | float = 256
    hidden_act_param: int | float = 0.03
    num_experts: int = 0
    num_experts_per_tok: int = 2
    router_jitter_noise: float = 0.0

    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_experts and not 0 < self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}, of {self.num_experts} experts")
        if self.num_experts and self.hidden_act == "fatrelu":
            raise ValueError("experts have no fatrelu gate")


def activation(config: MiniCPMConfig) -> nn.Module:
    """The function on the gate; fatrelu(x) is x above the threshold and 0 elsewhere (ProSparse, 2402.13516)."""
    found: nn.Module = (
        nn.Threshold(config.hidden_act_param, 0.0) if config.hidden_act == "fatrelu" else ACT2FN[config.hidden_act]
    )
    return found


class MiniCPMFFN(nn.Module):
    """down(act(gate(x)) * up(x)), hidden states (..., D) in and out."""

    def __init__(self, config: MiniCPMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = activation(config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class MiniCPMLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama layer whose two branches are scaled; hidden states (B, T, D) in and out."""

    def __init__(self, config: MiniCPMConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()  # the parent's own would make an FFN of Llama
        self.hidden_size = config.hidden_size
        self.residual_scale = config.scale_depth / config.num_hidden_layers**0.5
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = MixtralSparseMoeBlock(config) if config.num_experts else MiniCPMFFN(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        attended_BTD, _ = self.self_attn(self.input_layernorm(hidden_states), **inputs)
        hidden_states = hidden_states + attended_BTD * self.residual_scale
        out_BTD: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)) * self.residual_scale
        return out_BTD


register_checkpoint_conversion_mapping("minicpm", get_checkpoint_conversion_mapping("mixtral"), overwrite=True)


class MiniCPMPreTrained(MixtralPreTrainedModel):  # type: ignore[misc]  # which also initialises experts
    config_class = MiniCPMConfig
    _no_split_modules = ("MiniCPMLayer",)
    _can_record_outputs = {"hidden_states": MiniCPMLayer, "attentions": LlamaAttention}  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Draw as Llama does, but matrices between hidden states narrower the wider they are (the paper's table)."""
        super()._init_weights(module)
        matrices = (
            [module.weight] if isinstance(module, nn.Linear) and module is not self.get_output_embeddings() else []
        )
        if isinstance(module, MixtralExperts):
            matrices = [module.gate_up_proj, module.down_proj]
        for matrix in matrices:
            wider = self.config.hidden_size / self.config.dim_model_base
            initialization.normal_(matrix, std=self.config.initializer_range / wider**0.5)


class MiniCPMModel(MiniCPMPreTrained, ScaledLlama):
    """The decoder up to what the head reads."""

    def __init__(self, config: MiniCPMConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.input_scale = config.scale_emb
        self.head_divisor = config.hidden_size / config.dim_model_base
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(MiniCPMLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class MiniCPMForCausalLM(MiniCPMPreTrained, LlamaForCausalLM):  # type: ignore[misc]
    """The decoder and its head; called like `LlamaForCausalLM`."""

    def __init__(self, config: MiniCPMConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        # how many tokens an expert gets is known only when it runs
        self._can_compile_fullgraph = not config.num_experts
        self.model = MiniCPMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


@torch.no_grad()
def fold(model: MiniCPMForCausalLM) -> LlamaForCausalLM:
    """Return a plain Llama with the same logits, the constants multiplied into its weights.

    The table takes `scale_emb`, o_proj and down_proj take the scale of their branch, the head takes the division; a head
    that was tied to the table has its own weight then. The `-llama-format` conversions on the hub are of this kind.

    Raises:
        RequestError: a plain Llama has no such layers (experts, fatrelu, layers cut to different sizes).
    """
    if not isinstance(model, MiniCPMForCausalLM):
        raise RequestError(f"fold takes a MiniCPM module, such as model.module, not a {type(model).__name__}.")
    config, body = model.config, model.model
    if config.num_experts:
        raise RequestError(
            f"A Llama has one FFN in a layer; this MiniCPM has {config.num_experts} experts, which cannot be folded into it."
        )
    if config.hidden_act == "fatrelu":
        raise RequestError("A Llama has no fatrelu gate, so this MiniCPM cannot be folded into one.")
    tensors = dict(model.state_dict())
    tensors["lm_head.weight"] = tensors["lm_head.weight"] / body.head_divisor
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * body.input_scale
    for index, layer in enumerate(body.layers):
        for name in ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight"):
            place = f"model.layers.{index}.{name}"
            if place in tensors:  # there may be no bias; a factored or packed one has other names, and is refused below
                tensors[place] = tensors[place] * layer.residual_scale
    known = LlamaConfig().to_dict().keys() - {
        "model_type",
        "architectures",
        "transformers_version",
        "tie_word_embeddings",
    }
    values = {key: value for key, value in config.to_dict().items() if key in known}
    folded = LlamaForCausalLM(LlamaConfig(**values, tie_word_embeddings=False)).to(model.dtype)
    expected = folded.state_dict()
    for name in sorted(tensors.keys() | expected.keys()):
        shapes = [tuple(found[name].shape) if name in found else "absent" for found in (tensors, expected)]
        if shapes[0] != shapes[1]:
            raise RequestError(
                f"{name} is {shapes[0]}, which a Llama of this config has as {shapes[1]}; it cannot be folded."
            )
    folded.load_state_dict(tensors)
    return folded.to(model.device).eval()
