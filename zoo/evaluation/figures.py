"""Measuring a model: every evaluator is run from here, so that no figure is ever nan without a word."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.data.dataset import Dataset
from zoo.errors import DataError, ZooError
from zoo.model.health import cause, require_finite
from zoo.model.model import Model
from zoo.plugins.names import resolve


def check(task: str, model: Model, data: Dataset | None) -> None:
    """Refuse what the evaluator `task` would refuse later, from a model's structure; one without a `check` is not asked.

    Raises:
        RequestError: says why it cannot be measured.
    """
    asked = getattr(resolve("evaluator", task), "check", None)
    if data is not None and asked is not None:
        asked(model, data)


def measure(
    task: str, model: Model | None, data: Dataset | None, *, options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Run the evaluator `task`; baselines take no model.

    Raises:
        DataError: the data holds no records.
        ZooError: the weights hold nan or infinity, or a figure comes out like that; names the tensor or the figure.
    """
    if data is not None and not len(data):
        raise DataError(f"{task}: {data.name!r} holds no records.")
    if model is not None:
        require_finite(model, what=f"{task} of {model.spec.name}")
    figures: dict[str, dict[str, Any]] = resolve("evaluator", task).measure(model, data, options=options)
    for name, value in _figures(figures):
        if not math.isfinite(value):
            why = cause(model) if model is not None else "look at the data"
            raise ZooError(f"{task} of {model.spec.name if model else 'the data'}: {name} is {value}: {why}.")
    return figures


def _figures(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested figures, with its place."""
    if isinstance(tree, float):
        yield name, tree
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from _figures(value, f"{name}.{key}".lstrip("."))
