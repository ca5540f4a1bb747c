"""The compression core: recipes, plans, runs, reports, and one module or folder per technique."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_compress.planner import Plan, plan
    from zoo_compress.recipe import Recipe
    from zoo_compress.runner import Result, apply, run

__all__ = ["Plan", "Recipe", "Result", "apply", "plan", "run"]

_HOMES = {
    "Plan": "planner",
    "plan": "planner",
    "Recipe": "recipe",
    "Result": "runner",
    "apply": "runner",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo_compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"zoo_compress.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
