"""`zoo eval` and `zoo bench`: figures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from zoo import registry
from zoo.cli import output


def evaluate(
    model: output.ModelArgument,
    data: Annotated[str, typer.Option(help="What to measure on: a source or a path.")] = "stdlib:test",
    task: Annotated[
        list[str] | None, typer.Option(help="What to measure; may be given several times.  [default: perplexity]")
    ] = None,
    json: output.JsonOption = False,
) -> None:
    """Measure a model's quality on data."""
    _measure(model, data, task or ["perplexity"], json=json)


def bench(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Measure a model's speed and memory on this machine."""
    _measure(model, None, ["speed"], json=json)


def _measure(name: str, reference: str | None, tasks: Sequence[str], *, json: bool) -> None:
    for task in tasks:
        registry.declared("evaluator", task)  # a wrong name is known before anything is loaded
    with output.status(f"Loading {name}"):
        import zoo
        from zoo.data import open_data

        data = None if reference is None else open_data(reference)
        model = zoo.load(name)
    figures: dict[str, Any] = {}
    for task in tasks:
        with output.status(f"Measuring {task}"):
            figures[task] = registry.evaluator(task).measure(model, data, options={})
    if json:
        output.print_json({"model": name, "data": reference, "tasks": figures})
    else:
        output.print_facts(fact for task in tasks for fact in _facts(task, figures[task]))


def _facts(label: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten nested figures into labelled lines."""
    facts: list[tuple[str, str]] = []
    for key, value in figures.items():
        name = f"{label} {key}".replace("_", " ")
        if isinstance(value, Mapping):
            facts += _facts(name, value)
        else:
            facts.append((name, f"{value:.5g}" if isinstance(value, float) else str(value)))
    return facts
