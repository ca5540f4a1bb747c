"""Rank correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
