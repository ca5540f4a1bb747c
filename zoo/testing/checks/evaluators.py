"""Checks of evaluators and data sources: named finite figures, the same twice, and records that can be found again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError, one_line
from zoo.testing.bench import Bench, options, other_chance, thing
from zoo.testing.check import Check, Once, Skipped
from zoo.testing.computed import hash_of_tensors
from zoo.testing.exact import random_state_kept, require

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model
    from zoo.plugins.declarations import Declared

Figures = Mapping[str, Any]
FEW = 8  # records that an evaluator is given
SOME = 32  # records of a split that are looked at


# --- evaluators -------------------------------------------------------------------------------------------------------


def checks_of_evaluator(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one evaluator, on the first model and data that it takes."""
    subject = _Evaluator(bench, bench.label(declaration.name))
    for check, run in subject.questions.items():
        yield Check("evaluator", subject.name, check, run, bench.plugin.path)


@dataclass(frozen=True)
class _Measured:
    model: Model | None
    data: Dataset | None
    figures: Figures


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

    def determinism(self, folder: Path) -> None:
        """The same model and data give the same figures, but for what a clock says."""
        measured = self.measured.after("measure")
        with other_chance():
            again = self._measure(measured.model, measured.data)
        for name, figure in measured.figures.items():
            if not _is_cost(name, figure):
                require(
                    json.dumps(figure, default=str) == json.dumps(again.get(name), default=str),
                    f"{self.name}: {name} is {figure['value']} and then {again.get(name, {}).get('value')} for the same model and data",
                )

    def side_effects(self, folder: Path) -> None:
        """It leaves the model and the global random states as they were."""
        measured = self.measured.after("measure")
        before = hash_of_tensors(measured.model) if measured.model else ""
        with other_chance(), random_state_kept(self.name):
            self._measure(measured.model, measured.data)
        require(
            not measured.model or hash_of_tensors(measured.model) == before,
            f"{self.name} changes the model it measures",
        )

    def _measure(self, model: Model | None, data: Dataset | None) -> Figures:
        figures: Figures = self.evaluator.measure(model, data, options=options(self.evaluator.Options))
        return figures

    def _measure_something(self) -> _Measured:
        """Try models and data in turn, and measure the first that is not refused."""
        refusals: dict[str, str] = {}
        for model, label in self._models():
            for data in self._data(model):
                try:
                    return _Measured(model, data, self._measure(model, data))
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

    def _data(self, model: Model | None) -> Iterator[Dataset]:
        """A few records of the plugin's own sources, of what the model is usually measured on, and of the bench's."""
        from zoo.data.open import open_data

        own = [f"{self.bench.plugin.name}:{name}" for name in self.bench.plugin.declares("data")]
        usual = [model.family.evaluation[1]] if model is not None and model.family.evaluation[1] else []
        if model is None:
            usual = list(dict.fromkeys(self.bench.usable(base).family.evaluation[1] for base in self.bench.bases))
        for reference in (*own, *filter(None, usual)):
            try:
                yield open_data(f"{reference}[:{FEW}]")
            except ZooError:
                continue
        if model is not None:
            yield self.bench.data(model)


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
    better = figure.get("better", "lower")
    require(better in ("lower", "higher"), f'{where}: better is {better!r:.40}, not "lower" or "higher"')
    require(isinstance(figure.get("unit", ""), str), f"{where}: its unit is {figure.get('unit')!r:.40}, not text")
    try:
        json.dumps(figure, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{where} cannot be written as JSON: {error}") from None


def _is_cost(name: str, figure: Figures) -> bool:
    """Whether it is time, speed or memory, which is never the same twice."""
    unit = str(figure.get("unit", ""))
    return unit.endswith("/s") or unit in {"s", "ms", "B", "bytes"} or name.endswith(("_per_s", "_s", "_bytes"))


# --- data -------------------------------------------------------------------------------------------------------------


def checks_of_data(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one data source, on every split."""
    subject = _Source(bench, bench.label(declaration.name))
    for check, run in subject.questions.items():
        yield Check("data", subject.name, check, run, bench.plugin.path)


class _Source:
    """One data source under test."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        self.opened = Once(self._open)
        self.questions = {
            "resolve": self.resolve,
            "records": self.records,
            "determinism": self.determinism,
            "random state": self.random_state,
        }

    def resolve(self, folder: Path) -> None:
        """It has splits, and each holds records."""
        self.opened()

    def records(self, folder: Path) -> None:
        """Every record has something to learn from, and a place by which it can be found again."""
        from zoo.data.dataset import Sample

        for split, data in self.opened.after("resolve").items():
            where = f"{self.name}:{split}"
            wrong = [sample for sample in data if not isinstance(sample, Sample)]
            require(not wrong, f"{where} yields {wrong[:1]!r:.80}, not a zoo.data.dataset.Sample")
            for number, sample in enumerate(data):
                require(
                    bool(sample.where), f"{where}: record {number} does not say where it is from (`where` is empty)"
                )
                told = "text" in sample.fields or {"image", "label"} <= sample.fields.keys()
                require(
                    told,
                    f"{sample.where}: no field 'text', and no 'image' with its 'label'; fields are {', '.join(sample.fields) or 'none'}",
                )
                require(
                    isinstance(sample.fields.get("text", ""), str),
                    f"{sample.where}: 'text' is {type(sample.fields.get('text')).__name__}, not text",
                )
            origins = [sample.where for sample in data]
            twice = next((origin for i, origin in enumerate(origins) if origin in origins[:i]), "")
            require(not twice, f"{where}: two records are from {twice!r}; each needs a `where` of its own")

    def determinism(self, folder: Path) -> None:
        """Opened again, and in a fresh process, it holds the same."""
        for split, data in self.opened.after("resolve").items():
            with other_chance():
                again = self._dataset(split)
            require(
                again.fingerprint == data.fingerprint,
                f"{self.name}:{split} holds something else when it is opened again",
            )
            there = self.bench.fresh.fingerprint(self._reference(split))
            require(
                there == data.fingerprint,
                f"{self.name}:{split} holds something else in a fresh process; does it follow the order of a set?",
            )

    def random_state(self, folder: Path) -> None:
        """Reading it leaves the global random states as they were."""
        for split in self.opened.after("resolve"):
            with other_chance(), random_state_kept(f"{self.name}:{split}"):
                self._dataset(split)

    def _open(self) -> dict[str, Dataset]:
        splits = thing("data", self.name).splits
        require(
            isinstance(splits, tuple) and bool(splits) and all(isinstance(split, str) for split in splits),
            f'{self.name}: splits is {splits!r:.60}; name them in a tuple, such as ("train", "test")',
        )
        return {split: self._dataset(split) for split in splits}

    def _dataset(self, split: str) -> Dataset:
        from zoo.data.open import open_data

        return open_data(self._reference(split))

    def _reference(self, split: str) -> str:
        return f"{self.name}:{split}[:{SOME}]"
