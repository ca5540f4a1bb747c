"""The head of a causal model apart from its body, so that losses and perplexity need logits of chosen rows alone.

Between the two a class may scale, cap or add something that no config key tells. So what a split says is compared with
the model's own logits, and a model that does not agree is not split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo_slm.asked import ask
from zoo_slm.configs import UNFIT

Split = tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]
LARGE = 40.0  # what the head's weights are multiplied with: a cap on logits does not show in small ones


def body_and_head(module: nn.Module) -> Split | None:
    """Split a causal model of transformers into body and head, or None where the two are not all of it."""
    split = _split(module)
    return split if split is not None and ask(module, _agrees, of_twin=_agrees_also_when_large) else None


def _split(module: Any) -> Split | None:
    """What the names in class and config say."""
    head, body = module.get_output_embeddings(), module.base_model
    if body is module:  # Llama 4 names another prefix than its own
        body = getattr(module, "model", None)
    if head is None or body is None or getattr(module, "lm_head", None) is not head:
        return None
    if getattr(module.config, "is_encoder_decoder", False):  # T5 scales between the two, BART adds a bias after
        return None
    read: Any = head
    config = module.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    # Cohere, Falcon-H1; Granite
    factors = [
        float(getattr(config, name, None) or 1) for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")
    ]
    scale = factors[0] * factors[1] / factors[2]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        weight = getattr(read, "weight", None)
        if weight is not None and weight.is_floating_point():  # Mamba leaves its body in float32
            hidden = hidden.to(weight.dtype)
        raw: torch.Tensor = read(hidden) * scale if scale != 1 else read(hidden)
        return torch.tanh(raw / cap) * cap if cap else raw

    return body, logits


def _agrees_also_when_large(twin: Any) -> bool:
    if not _agrees(twin):
        return False
    with torch.no_grad():
        twin.get_output_embeddings().weight.mul_(LARGE)
    return _agrees(twin)


def _agrees(module: Any) -> bool:
    """Whether body and head give the module's own logits of eight tokens; what does not run does not."""
    split = _split(module)
    if split is None:
        return False
    body, head = split
    ids = torch.arange(1, 9, device=module.get_output_embeddings().weight.device)[None]
    try:
        with torch.no_grad():
            own = module(input_ids=ids).logits
            ours = head(body(input_ids=ids, use_cache=False).last_hidden_state)
    except UNFIT:
        return False
    near = 1e-4 if own.dtype == torch.float32 else 2e-2
    own, ours = own.float(), ours.float()
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=near, atol=near * float(own.abs().max()))
