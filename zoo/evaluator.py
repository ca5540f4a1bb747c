"""The contract of an evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from zoo.data.dataset import Dataset
from zoo.model.model import Model


class Evaluator(Protocol):
    """Measures a model on data.

    It may also have `Options`, a pydantic model of its table in a recipe's [evaluate]; `check(model, data)`, which refuses
    in a plan what `measure` would refuse later; `label`, which makes it a baseline that is measured without a model; and
    `version`, a number that is raised when the same model and data give other figures: a run then measures anew.
    A share is 0 to 1, or, where its unit is "%", 0 to 100. One that reads other fields of records than "text" is given
    them by a reference such as `pairs.jsonl?text=`.
    """

    def measure(
        self, model: Model | None, data: Dataset | None, *, options: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return figures by name: a "value", and where they apply "low" and "high", "n" samples and "of" what, a "unit", and which is "better"."""
