"""Rank correlation, and the interval of a figure of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """The correlation of the ranks of two lists, equal values sharing a rank (Spearman 1904); nan where one is constant."""
    import numpy as np

    if len(x_N) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return float("nan")
    return round(float(np.corrcoef(_ranks(x_N), _ranks(y_N))[0, 1]), 12)  # of equal ranks 1, not 1 + 2e-16


def _ranks(values_N: np.ndarray) -> np.ndarray:
    import numpy as np

    _, places, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[places]
    return ranks


def with_interval(figure: Callable[[np.ndarray], float], count: int, *, draws: int = 1000) -> dict[str, Any]:
    """A figure of `count` samples with its 95% percentile bootstrap (Efron 1979), seed 0, where there are two or more.

    Args:
        figure: of the samples at some places; draws for which it is nan are left out.
    """
    import numpy as np

    metric: dict[str, Any] = {"value": figure(np.arange(count)), "n": count}
    if count < 2:
        return metric
    generator = np.random.default_rng(0)
    drawn = np.array([figure(generator.integers(0, count, count)) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return metric
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {**metric, "low": min(float(low), metric["value"]), "high": max(float(high), metric["value"])}
