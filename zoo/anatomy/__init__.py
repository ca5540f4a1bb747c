"""Anatomy: where the repeated blocks, projections, norms, embeddings and head are inside a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.anatomy.parts import FFN as FFN
    from zoo.anatomy.parts import Anatomy as Anatomy
    from zoo.anatomy.parts import Attention as Attention
    from zoo.anatomy.parts import Block as Block
    from zoo.anatomy.parts import Linears as Linears
    from zoo.anatomy.parts import Part as Part
    from zoo.anatomy.parts import Stack as Stack
    from zoo.anatomy.parts import Target as Target

HOMES = {
    "zoo.anatomy.parts": ("Anatomy", "Attention", "Block", "FFN", "Linears", "Part", "Stack", "Target"),
}
__getattr__, __dir__ = face(__name__, HOMES)
