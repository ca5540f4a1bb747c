"""`zoo eval` and `zoo bench`: figures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import output
from zoo.errors import RequestError
from zoo.plugins.names import declaration

if TYPE_CHECKING:
    from zoo.loading.locate import Located

OWN = ("value", "low", "high", "unit", "better", "n", "of")  # what a figure says of itself


def evaluate(
    model: output.ModelArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="What to measure on: a source or a path.  [default: what suits the model, such as stdlib:test]"
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure; may be given several times.  [default: what suits the model, such as perplexity]"
        ),
    ] = None,
    weights: output.WeightsOption = "auto",
    json: output.JsonOption = False,
) -> None:
    """Measure a model's quality on data."""
    for name in task or ():
        declaration("evaluator", name)  # a wrong name is known before anything is loaded
    from zoo.loading.locate import locate

    _measure(locate(model, weights), data or "", task or [], json=json)


def bench(model: output.ModelArgument, weights: output.WeightsOption = "auto", json: output.JsonOption = False) -> None:
    """Measure a model's speed and memory on this machine."""
    from zoo.loading.locate import locate

    _measure(locate(model, weights), None, ["speed"], json=json)


def _measure(located: Located, reference: str | None, tasks: Sequence[str], *, json: bool) -> None:
    name = located.asked
    with output.status(f"Loading {name}"):
        import zoo
        from zoo.data.open import open_data
        from zoo.evaluation.figures import check, measure
        from zoo.family.task import task_of
        from zoo.system.memory import peak_bytes, reset_peak
        from zoo.system.quantities import counted

        skeleton = zoo.load(located, device="meta")  # what is imported for it is nobody's memory
        if reference is not None:
            reference = reference or task_of(skeleton).usual_data(skeleton)
            if not reference:
                raise RequestError(f"{name} comes without data to measure on; name some with --data.")
        data = None if reference is None else open_data(reference)
        tasks = tasks or [task_of(skeleton).usual_evaluator(skeleton, data)]
        if skeleton.processor is not None or not skeleton.family.needs_processor:
            for task in tasks:
                check(task, skeleton, data)
        reset_peak()
        model = zoo.load(located)
    figures: dict[str, Any] = {}
    for task in tasks:
        with output.status(f"Measuring {task}"):
            figures[task] = measure(task, model, data, options={})
    if data is None:
        figures["memory"] = {"peak_rss_bytes": {"value": peak_bytes(), "unit": "B", "better": "lower"}}
    if json:
        output.print_json({"model": name, "data": reference, "tasks": figures})
    else:
        print(f"{name} on {_machine()}" if data is None else f"{name} on {data.name}, {counted(len(data), 'records')}")
        _print_figures(figures)


def _machine() -> str:
    """What a speed was measured on."""
    import torch

    from zoo.model.provenance import cpu

    threads = torch.get_num_threads()
    return f"{cpu()}, {threads} thread{'' if threads == 1 else 's'}"


def _print_figures(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each figure, those of its groups below it; a table of confusions is for --json and reports."""
    columns = ("figure", "value", "interval", "unit", "n", "better")
    rows = [row for task in figures.values() for key, metric in task.items() for row in _rows(key, metric)]
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    output.print_table(
        [columns[i] for i in shown], [[row[i] for i in shown] for row in rows], right=("value", "interval", "n")
    )


def _rows(name: str, metric: Any, *, unit: str = "") -> list[list[str]]:
    """The row of a figure, and those of the figures inside it."""
    from zoo.system.quantities import counted, finite, is_bytes, measured

    entry = metric if isinstance(metric, Mapping) else {"value": metric}
    unit = str(entry.get("unit", unit))
    value, low, high = (finite(entry.get(end)) for end in ("value", "low", "high"))
    main, spread = measured(value, low, high, unit)
    count = counted(entry["n"], str(entry.get("of", ""))) if "n" in entry else ""
    shown = "" if unit in ("%", "s") or is_bytes(unit) else unit
    row = [_label(name, unit), main, spread, shown if value is not None else "", count, str(entry.get("better", ""))]
    rows = [row] if "value" in entry else []
    for key, inner in entry.items():
        if key == "by" and isinstance(inner, Mapping):
            rows += [row for group, part in inner.items() for row in _rows(f"{name}, {group}", part, unit=unit)]
        elif key not in (*OWN, "confusion", "rounds"):
            rows += _rows(f"{name}, {key}", inner, unit=unit)
    return rows


def _label(name: str, unit: str) -> str:
    """What a figure is called, without the unit that stands beside it."""
    if unit.endswith("/s"):
        return name.removesuffix("_per_s").rpartition("_")[0].replace("_", " ") or "speed"
    return name.removesuffix("_bytes").replace("_", " ").replace(" rss", " memory")
