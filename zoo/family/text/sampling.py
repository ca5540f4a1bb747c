"""How a text is continued: the options of sampling, and the choice of one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo.errors import RequestError

MOST = 1000  # texts of one prompt


@dataclass(frozen=True)
class Sampling:
    """How a text is continued, and where it ends.

    Raises:
        RequestError: a value is of the wrong kind or out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    count: int = 1  # texts of one prompt, text i from the seed `seed` + i

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "temperature", "top_p", "count"):
            value, whole = getattr(self, name), name in ("max_new_tokens", "count")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise RequestError(f"{name} = {value!r} is not a {'whole ' if whole else ''}number.")
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens = {self.max_new_tokens} is not at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise RequestError(f"temperature = {self.temperature} is not a number from 0.")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p = {self.top_p} is not a share above 0, and at most 1.")
        if not 1 <= self.count <= MOST:
            raise RequestError(f"count = {self.count} is not from 1 to {MOST}.")
        if self.count > 1 and not self.temperature:
            raise RequestError(
                f"count = {self.count}: at temperature 0 all texts are the likeliest one; set a temperature, such as 1."
            )
        require_seed(self.seed)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise RequestError("A stop string is some text; an empty one would stop before the first character.")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "temperature", float(min(self.temperature, 1e300)))


def require_seed(seed: Any) -> None:
    """Refuse what no generator takes as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed = {seed!r} is not a whole number.")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed {seed} is not between 0 and 2**63.")


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
