"""The compression core: recipes, plans, runs, reports, and one module or folder per technique."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo_compress.recipe.planned import Plan
    from zoo_compress.recipe.planner import plan
    from zoo_compress.recipe.recipe import Recipe
    from zoo_compress.recipe.runner import Result, apply, run

__all__ = ["Plan", "Recipe", "Result", "apply", "plan", "run"]

HOMES = {
    "zoo_compress.recipe.planned": ("Plan",),
    "zoo_compress.recipe.planner": ("plan",),
    "zoo_compress.recipe.recipe": ("Recipe",),
    "zoo_compress.recipe.runner": ("Result", "apply", "run"),
}
__getattr__, __dir__ = face(__name__, HOMES)
