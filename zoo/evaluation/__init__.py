"""Measuring: figures of models, and shares with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.evaluation.intervals import wilson as wilson
    from zoo.evaluation.shares import accuracy as accuracy

HOMES = {
    "zoo.evaluation.intervals": ("wilson",),
    "zoo.evaluation.shares": ("accuracy",),
}
__getattr__, __dir__ = face(__name__, HOMES)
