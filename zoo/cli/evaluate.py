"""`zoo eval` and `zoo bench`: figures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from zoo.cli import output
from zoo.errors import RequestError
from zoo.plugins.names import declaration


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
    json: output.JsonOption = False,
) -> None:
    """Measure a model's quality on data."""
    for name in task or ():
        declaration("evaluator", name)  # a wrong name is known before anything is loaded
    from zoo.loading.load import family_of

    family = family_of(model)
    reference = data or family.evaluation[1]
    if not reference:
        raise RequestError(f"{model} comes without data to measure on; name some with --data.")
    _measure(model, reference, task or [], json=json)


def bench(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Measure a model's speed and memory on this machine."""
    _measure(model, None, ["speed"], json=json)


def _measure(name: str, reference: str | None, tasks: Sequence[str], *, json: bool) -> None:
    with output.status(f"Loading {name}"):
        import zoo
        from zoo.data.open import open_data
        from zoo.evaluation.figures import measure

        data = None if reference is None else open_data(reference)
        model = zoo.load(name)
    tasks = tasks or [model.family.usual_task(data)]
    figures: dict[str, Any] = {}
    for task in tasks:
        with output.status(f"Measuring {task}"):
            figures[task] = measure(task, model, data, options={})
    if json:
        output.print_json({"model": name, "data": reference, "tasks": figures})
    else:
        output.print_facts(fact for task in tasks for fact in _facts(task, figures[task]))


def _facts(label: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten nested figures into labelled lines; a table of confusions is for --json and reports."""
    facts: list[tuple[str, str]] = []
    for key, value in figures.items():
        name = (label if key.replace("_", "-") == label else f"{label} {key}").replace("_", " ")
        if key == "confusion":
            continue
        if isinstance(value, Mapping):
            facts += _facts(name, value)
        else:
            facts.append((name, f"{value:.5g}" if isinstance(value, float) else str(value)))
    return facts
