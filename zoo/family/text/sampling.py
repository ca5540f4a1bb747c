"""The choice of one token."""

from __future__ import annotations

from typing import Any

import torch


def seed_of(seed: int, index: int) -> int:
    """The seed of sample `index` of `seed`: the first sample of seed + 1 is the second of seed."""
    return (seed + index) % 2**63


def pick(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Any:
    """Greedy at temperature 0, otherwise nucleus sampling (Holtzman et al. 2020, 1904.09751, section 3.1).

    Of tokens in slots (slots, V) each slot is picked for itself.
    """
    import torch

    if logits_V.dim() > 1:
        return tuple(pick(slot_V, temperature, top_p, generator) for slot_V in logits_V)
    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = (logits_V - logits_V.max()).cpu().double() / temperature  # at most 0: no temperature is too low
    chances_V, order_V = torch.softmax(scaled_V, -1).sort(descending=True, stable=True)
    chances_V = chances_V.masked_fill(chances_V.cumsum(-1) - chances_V >= top_p, 0.0)
    return int(order_V[torch.multinomial(chances_V, 1, generator=generator)])
