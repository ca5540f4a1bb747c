"""What timm's classes keep of their parameters outside training, and forget only when training is switched on."""

from __future__ import annotations

from torch import nn


def forget(module: nn.Module) -> None:
    """Forget the attention biases that LeViT, EfficientFormer and their kin computed of their parameters at an earlier pass.

    Here models train as they are evaluated, without dropout and with the statistics of their batch norms as they stand: what
    is kept would belong to parameters that have moved since, and to a graph that is gone.
    """
    for part in module.modules():
        if getattr(part, "attention_bias_cache", None):
            part.attention_bias_cache = {}  # type: ignore[assignment]
