"""The compression core: recipes, plans, runs, reports, and one module or folder per technique."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo_compress.planner import Plan, plan
    from zoo_compress.recipe import Recipe
    from zoo_compress.runner import Result, apply, run

__all__ = ["Plan", "Recipe", "Result", "apply", "plan", "run"]

HOMES = {
    "zoo_compress.planner": ("Plan", "plan"),
    "zoo_compress.recipe": ("Recipe",),
    "zoo_compress.runner": ("Result", "apply", "run"),
}
__getattr__, __dir__ = face(__name__, HOMES)
