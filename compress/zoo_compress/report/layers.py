"""What a stage says of each layer that it calibrated: a table to unfold."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from statistics import median
from typing import Any

from zoo.system.quantities import DASH, clean, finite, quantity
from zoo_compress.report.columns import Row


def layer_table(number: int, row: Row) -> str:
    """Lay out the layers of a stage as rows, what it says of them as columns; empty where it says nothing."""
    table = row.data.get("layers")
    layers = (
        {str(path): told for path, told in table.items() if isinstance(told, Mapping)}
        if isinstance(table, Mapping)
        else {}
    )
    columns = list(dict.fromkeys(str(name) for told in layers.values() for name in told))
    if not columns:
        return ""
    heads = "".join(f'<th scope="col">{_text(name.replace("_", " "))}</th>' for name in columns)
    lines = [
        f'<tr><th scope="row">{_text(path)}</th>{"".join(f"<td>{_text(_cell(told.get(name)))}</td>" for name in columns)}</tr>'
        for path, told in layers.items()
    ]
    return (
        f"<details><summary>{number} {_text(row.label)}: {len(layers)} layers{_text(_errors(layers))}</summary>"
        f'<div class="scroll" role="region" aria-label="layers of stage {number}" tabindex="0"><table><thead><tr>'
        f'<th scope="col">layer</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div></details>'
    )


def _errors(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what the middle layer loses, and would lose by the simplest method where that was told."""
    errors = [error for told in layers.values() if (error := finite(told.get("error"))) is not None]
    if not errors:
        return ""
    beside = ""
    for way in ("rounding", "magnitude"):
        simple = [error for told in layers.values() if (error := finite(told.get(f"{way}_error"))) is not None]
        beside += f" (by {way} {quantity(median(simple))})" if simple else ""
    return f", half of them with an error of at most {quantity(median(errors))}{beside}"


def _cell(value: object) -> str:
    if value is None:
        return DASH
    number = finite(value) if not isinstance(value, bool) else None
    if number is not None and isinstance(value, int):
        return f"{value:,}"
    return quantity(number) if number is not None else clean(value)


def _text(value: object) -> str:
    return escape(clean(value))
