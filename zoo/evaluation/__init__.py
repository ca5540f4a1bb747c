"""Measuring: figures of models, and shares with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.evaluation.shares import accuracy as accuracy
    from zoo.evaluation.shares import wilson as wilson

HOMES = {
    "zoo.evaluation.shares": ("accuracy", "wilson"),
}
__getattr__, __dir__ = face(__name__, HOMES)
