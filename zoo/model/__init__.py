"""A loaded model: the plain module, its processor, its spec and its lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.model.model import Model as Model

HOMES = {
    "zoo.model.model": ("Model",),
}
__getattr__, __dir__ = face(__name__, HOMES)
