"""From the losses that a recipe names to the losses themselves, row losses apart from feature losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zoo import registry
from zoo.errors import RecipeError
from zoo.loss import FeatureLoss, RowLoss
from zoo.options import validated

WeightedRow = tuple[str, RowLoss, Any]  # name, loss, options
WeightedFeature = tuple[str, FeatureLoss, Any]


def resolve_losses(requests: Iterable[Mapping[str, Any]]) -> tuple[list[WeightedRow], list[WeightedFeature]]:
    """Resolve the losses a recipe names, row losses apart from feature losses.

    Raises:
        UnknownName, RecipeError: no such loss, or an option that does not fit it.
    """
    rows: list[WeightedRow] = []
    features: list[WeightedFeature] = []
    for request in requests:
        name = str(request.get("use", ""))
        loss = registry.loss(name)
        own = validated(
            loss.Options, {key: value for key, value in request.items() if key != "use"}, what=f"loss {name}"
        )
        if any(name == other for other, *_ in (*rows, *features)):
            raise RecipeError(f"loss {name!r} is listed twice; give it one weight.")
        if isinstance(loss, RowLoss):
            rows.append((name, loss, own))
        else:
            features.append((name, loss, own))
    return rows, features
