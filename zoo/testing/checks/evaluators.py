"""Checks of evaluators: named finite figures, shares that are shares, the same twice and in another process."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError, one_line
from zoo.family.task import task_of
from zoo.testing.bench import Bench, other_chance, thing
from zoo.testing.check import Check, Once, Skipped, require
from zoo.testing.computed import hash_of_tensors, left_behind
from zoo.testing.materials import data_for, options_of
from zoo.testing.surroundings import surroundings_kept

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model
    from zoo.plugins.declarations import Declared

Figures = Mapping[str, Any]
FEW = 8  # records that an evaluator is given
# Figures that are shares of something, by the words in their names.
SHARES = ("accuracy", "acc", "auc", "auroc", "precision", "recall", "f1", "iou", "match", "pass", "share", "agreement")


def checks_of_evaluator(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one evaluator, on the first model and data that it takes."""
    subject = _Evaluator(bench, bench.label(declaration.name))
    for check, run in subject.questions.items():
        yield Check("evaluator", subject.name, check, run, bench.plugin.path)


@dataclass(frozen=True)
class _Measured:
    base: str  # of the model, as the bench has it
    model: Model | None
    data: Dataset
    reference: str  # by which the data is opened; "" for the bench's own
    figures: Figures
    before: Any  # the model's condition before it was measured
    left: str  # what others had left behind in it


class _Evaluator:
    """One evaluator under test."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.measured = Once(self._measure_something)
        self.questions = {
            "measure": self.measure,
            "figures": self.figures,
            "determinism": self.determinism,
            "side effects": self.side_effects,
        }

    @property
    def evaluator(self) -> Any:
        return thing("evaluator", self.name)

    def measure(self, folder: Path) -> None:
        """It measures some model."""
        self.measured()

    def figures(self, folder: Path) -> None:
        """Its figures are named, finite, and such as a report can show."""
        figures = self.measured.after("measure").figures
        require(
            isinstance(figures, Mapping) and bool(figures),
            f"{self.name} gives {figures!r:.80}, and a table of figures is expected: "
            '{"accuracy": {"value": 97.5, "unit": "%", "better": "higher"}}',
        )
        for name, figure in figures.items():
            require(
                isinstance(name, str) and name.replace("_", "").isalnum() and name == name.lower(),
                f"{self.name}: {name!r} is no name of a figure; write it like bits_per_byte",
            )
            require(
                isinstance(figure, Mapping) and "value" in figure,
                f'{self.name}: {name} is {figure!r:.80}, without a "value"',
            )
            _check_figure(f"{self.name}: {name}", figure)
            _check_share(f"{self.name}: {name}", name, figure, records=len(self.measured().data or ()))

    def determinism(self, folder: Path) -> None:
        """The same model and data give the same figures, in another process too, but for what a clock says."""
        measured = self.measured.after("measure")
        with other_chance():
            again = self._measure(measured.model, measured.data)
        self._require_alike(measured.figures, again, "for the same model and data")
        start = self.bench.start(measured.base) if measured.model else {}
        there = self.bench.fresh.figures(self.name, start, measured.reference)
        self._require_alike(
            measured.figures,
            there,
            "in another process, for the same model and data; does it follow the order of a set?",
        )

    def _require_alike(self, figures: Figures, others: Figures, when: str) -> None:
        for name, figure in figures.items():
            other = others.get(name, {})
            require(
                _is_cost(name, figure) or json.dumps(figure, default=str) == json.dumps(other, default=str),
                f"{self.name}: {name} is {figure['value']} and then {other.get('value')} {when}",
            )

    def side_effects(self, folder: Path) -> None:
        """It leaves the model, the random states, torch, the process and itself as they were."""
        measured = self.measured.after("measure")
        with other_chance(), surroundings_kept(self.name, self.evaluator):
            self._measure(measured.model, measured.data)
        require(_condition(measured.model) == measured.before, f"{self.name} changes the model it measures")
        rest = _left_behind(measured.model)
        require(rest in ("", measured.left), f"{self.name} leaves {rest} in the model it measures")
        data = measured.data
        require(
            type(data)(data.name, data).fingerprint == data.fingerprint,
            f"{self.name} changes the records it measures on, which others are given after it; work on a copy",
        )

    def _measure(self, model: Model | None, data: Dataset | None) -> Figures:
        figures: Figures = self.evaluator.measure(model, data, options=options_of(self.evaluator))
        return figures

    def _measure_something(self) -> _Measured:
        """Try models and data in turn, and measure the first that is not refused."""
        refusals: dict[str, str] = {}
        for model, label in self._models():
            for data, reference in self._data(model):
                before, left = _condition(model), _left_behind(model)
                try:
                    return _Measured(label, model, data, reference, self._measure(model, data), before, left)
                except ZooError as error:
                    refusals.setdefault(label, one_line(error))
        said = "; ".join(f"{label}: {reason}" for label, reason in refusals.items())
        raise AssertionError(f"{self.name} measures none of the models it was tried on ({said})")

    def _models(self) -> Iterator[tuple[Model | None, str]]:
        if hasattr(self.evaluator, "label"):  # a baseline, which measures data alone
            yield None, "no model"
            return
        for base in self.bench.bases:
            try:
                yield self.bench.usable(base), base
            except Skipped:
                continue

    def _data(self, model: Model | None) -> Iterator[tuple[Dataset, str]]:
        """A few records of the plugin's own sources, of what the model is usually measured on, and of the bench's."""
        from zoo.data.open import open_data

        own = [f"{self.bench.plugin.name}:{name}" for name in self.bench.plugin.declares("data")]
        usual = [] if model is None else [task_of(model).usual_data(model)]
        if model is None:
            usual = list(dict.fromkeys(self._usual()))
        for reference in (*own, *filter(None, usual)):
            few = f"{reference}[:{FEW}]"
            try:
                yield open_data(few), few
            except ZooError:
                continue
        if model is not None:
            yield data_for(model), ""

    def _usual(self) -> Iterator[str]:
        """The data that the families of the bench's models are measured on."""
        from zoo.loading.locate import locate

        for name in self.bench.bases.values():
            with contextlib.suppress(ZooError):  # of a plugin that is not in use
                yield locate(name).family.evaluation[1]


def _check_figure(where: str, figure: Figures) -> None:
    """A figure is finite, lies within its interval, says which way is better, and can be written as JSON."""
    numbers = {key: figure[key] for key in ("value", "low", "high") if key in figure}
    for key, number in numbers.items():
        real = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        require(real, f"{where}: {key} is {number!r}, not a finite number")
    require(
        ("low" in figure) == ("high" in figure), f"{where} has one end of an interval; give low and high, or neither"
    )
    if "low" in figure:
        require(
            figure["low"] <= figure["value"] <= figure["high"],
            f"{where} is {figure['value']}, outside its interval {figure['low']} to {figure['high']}",
        )
    cost = figure.get("unit") in ("s", "ms", "B", "bytes") or str(figure.get("unit", "")).endswith("/s")
    require(
        not cost or min(numbers.values()) >= 0, f"{where} is {min(numbers.values())}, and none is less than nothing"
    )
    better = figure.get("better", "lower")
    require(better in ("lower", "higher"), f'{where}: better is {better!r:.40}, not "lower" or "higher"')
    require(isinstance(figure.get("unit", ""), str), f"{where}: its unit is {figure.get('unit')!r:.40}, not text")
    try:
        json.dumps(figure, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{where} cannot be written as JSON: {error}") from None


def _check_share(where: str, name: str, figure: Figures, *, records: int) -> None:
    """A share lies within 0 to 1, one in percent within 0 to 100."""
    numbers = [figure[key] for key in ("value", "low", "high") if key in figure]
    percent = figure.get("unit") == "%"
    if not percent and not (any(word in name.split("_") for word in SHARES) and not figure.get("unit")):
        return
    most, is_share = (100, "a share in percent is 0 to 100") if percent else (1, "a share is 0 to 1")
    wrong = next((number for number in numbers if not 0 <= number <= most), None)
    instead = "give what is none another unit" if percent else 'write percent with "unit": "%"'
    require(wrong is None, f"{where} is {wrong}{' %' if percent else ''}, and {is_share}; {instead}")
    value = figure["value"]
    require(
        not (percent and 0 < value <= 1 and float(value * records).is_integer()),
        f"{where} is {value} %, which is the share of {value * records:.0f} of {records} records; multiply it by 100",
    )


def _condition(model: Model | None) -> tuple[str, list[bool], list[bool]] | None:
    """What a model has to be like after it was measured: its tensors, what trains of it, what is in train mode."""
    if model is None:
        return None
    parameters, parts = model.module.parameters(), model.module.modules()
    return hash_of_tensors(model), [p.requires_grad for p in parameters], [part.training for part in parts]


def _left_behind(model: Model | None) -> str:
    return "" if model is None else left_behind(model.module)


def _is_cost(name: str, figure: Figures) -> bool:
    """Whether it is time, speed or memory, which is never the same twice."""
    unit = str(figure.get("unit", ""))
    return unit.endswith("/s") or unit in {"s", "ms", "B", "bytes"} or name.endswith(("_per_s", "_s", "_bytes"))
