"""Data by name, by path or by hub id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset as Dataset
    from zoo.data.dataset import Sample as Sample
    from zoo.data.dataset import Source as Source
    from zoo.data.open import open_data as open_data

HOMES = {
    "zoo.data.dataset": ("Dataset", "Sample", "Source"),
    "zoo.data.open": ("open_data",),
}
__getattr__, __dir__ = face(__name__, HOMES)
