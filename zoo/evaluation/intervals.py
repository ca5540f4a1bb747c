"""The 95% intervals of figures, and nowhere else: of a share, of any figure of samples, and of a mean or ratio.

Legend: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Z = 1.959964  # standard errors on either side that hold 95% of a normal distribution


def wilson(hits: int, count: int, *, z: float = Z) -> tuple[float, float]:
    """Return the interval of a share (Wilson 1927): never below 0 or above 1, and sensible at both ends."""
    if not count:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(figure: Callable[[torch.Tensor], float], count: int, *, draws: int = 1000) -> dict[str, Any]:
    """A figure of `count` samples with its percentile bootstrap (Efron 1979), seed 0, where there are two or more.

    Args:
        figure: of the samples at some places; draws for which it is nan or infinite are left out.
    """
    import torch

    metric: dict[str, Any] = {"value": float(figure(torch.arange(count))), "n": count}
    if count < 2:
        return metric
    drawn = sorted(value for value in map(figure, _resampled([count], draws=draws, seed=0)) if math.isfinite(value))
    if not drawn:
        return metric
    low, high = drawn[int(0.025 * len(drawn))], drawn[max(0, int(0.975 * len(drawn)) - 1)]
    return {**metric, "low": min(float(low), metric["value"]), "high": max(float(high), metric["value"])}


def bootstrap_error(
    figure: Callable[[torch.Tensor], float], groups: Sequence[str], *, draws: int = 200, seed: int = 0
) -> float:
    """The standard error of a figure over samples that are resampled within their group (Efron 1979).

    For figures that a sample drawn twice moves to one side, as it does a distance between clouds: their percentiles
    would lie on that side too. Groups are for samples whose number in each was chosen, which is no chance.
    """
    import torch

    names = list(dict.fromkeys(groups))
    members = torch.tensor(sorted(range(len(groups)), key=lambda i: names.index(groups[i])))
    picks = _resampled([list(groups).count(name) for name in names], draws=draws, seed=seed)
    return float(torch.tensor([figure(members[places]) for places in picks]).std())


def delta_method(over_N: torch.Tensor, under_N: torch.Tensor) -> dict[str, Any]:
    """sum(over) / sum(under), with the standard error of its linear part (Cochran 1977, section 6.3); of ones, a mean."""
    over_N, under_N = over_N.double(), under_N.double()
    value, count = float(over_N.sum() / under_N.sum()), len(over_N)
    if count < 2:
        return {"value": value, "n": count}
    error = float((over_N - value * under_N).std() * count**0.5 / under_N.sum())
    return {"value": value, **normal(value, error), "n": count}


def normal(value: float, error: float) -> dict[str, float]:
    """The interval of a figure whose standard error is known, as parts of a metric."""
    return {"low": value - Z * error, "high": value + Z * error}


def _resampled(counts: Sequence[int], *, draws: int, seed: int) -> Iterator[torch.Tensor]:
    """Places drawn with replacement, within each of some groups of so many samples that lie one after the other."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    for _ in range(draws):
        yield torch.cat(
            [
                start + torch.randint(0, count, (count,), generator=generator)
                for start, count in zip(starts, counts, strict=True)
            ]
        )
