"""Learning-rate schedules as plain functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["linear", "cosine", "1-sqrt", "exponential"]


def wsd(step: int, *, warmup: int, total: int, decay: int, shape: Decay = "1-sqrt", half_life: float = 0.0) -> float:
    """Warmup-stable-decay factor in [0, 1] at `step` of `total` (MiniCPM, 2404.06395, section 4).

    The factor rises linearly over `warmup` steps, stays at 1, and falls over the last `decay` steps: to 0 for "linear",
    "cosine" and "1-sqrt", by half every `half_life` steps for "exponential" (the paper's form).
    """
    if step < warmup:
        return step / warmup
    start = total - decay
    if step <= start or decay == 0:
        return 1.0
    done = min(1.0, (step - start) / decay)
    if shape == "exponential":
        return float(0.5 ** ((step - start) / half_life))
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - (math.sqrt(done) if shape == "1-sqrt" else done)
