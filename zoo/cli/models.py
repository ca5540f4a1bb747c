"""`zoo list`: the models there are to load."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo import catalog
from zoo.cli import output
from zoo.errors import nearest
from zoo.system import quantities


def list_models(
    modality: Annotated[str | None, typer.Option(help="Only this modality, such as text.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family, such as llama.")] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Only models of at most this many parameters, such as 1.5B.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Only this licence, such as Apache-2.0.")] = None,
    json: output.JsonOption = False,
) -> None:
    """List the models there are to load; `zoo info MODEL` says more about one."""
    found = catalog.fitting(modality=modality, family=family, max_params=max_params, license=license)
    if json:
        output.print_json([{**spec.to_json(), "name": name} for name, spec in found.items()])
    elif found:
        rows = [
            (name, quantities.count(s.params), s.modality, s.family, s.task, s.license, s.summary)
            for name, s in found.items()
        ]
        columns = ("name", "params", "modality", "family", "task", "license", "summary")
        output.print_table(
            columns, rows, right=("params",), cut="summary", spare=("family", "modality", "task", "license")
        )
    if not found:
        output.say(_nothing(modality=modality, family=family, license=license))


def _nothing(**asked: str | None) -> str:
    """Say which filter fits no model at all, and what would."""
    everything = catalog.models()
    for key, value in asked.items():
        known = sorted({getattr(spec, key) for spec in everything})
        if value is not None and value.casefold() not in {text.casefold() for text in known}:
            return f"No model has {key} {value!r}.{nearest(value, known)} There is: {', '.join(known) or 'none'}."
    return "No model fits all of that." if everything else "The catalogue is empty."
