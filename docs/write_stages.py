"""The reference of stages and losses, written from their docstrings and options: `python docs/write_stages.py`."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from pydantic import BaseModel

from zoo import registry
from zoo.plugins.names import of_kind


def reference() -> str:
    """Return docs/stages.md: every registered stage and loss with its options."""
    lines = [
        "# Stages and losses",
        "",
        "Written by `python docs/write_stages.py > docs/stages.md`; a test keeps it in step. Every option can be set",
        "in a recipe's `[[stage]]` table, on the command line with `--set stage.1.NAME=VALUE`, or in Python.",
        "",
    ]
    for kind, get in (("compressor", registry.compressor), ("loss", registry.loss)):
        for name in sorted(of_kind(kind)):
            lines += _entry(name if kind == "compressor" else f"loss: {name}", get(name))
    return "\n".join(lines)


def _entry(title: str, found: Any) -> list[str]:
    options: type[BaseModel] = found.Options
    rows = [
        f"| `{name}` | {_kind(field.annotation)} | {_default(field)} | {field.description or ''} |"
        for name, field in options.model_fields.items()
    ]
    table = ["| option | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else ["No options.", ""]
    return [f"## {title}", "", inspect.cleandoc(type(found).__doc__ or ""), "", *table]


def _kind(annotation: Any) -> str:
    """A type as a reader of recipes says it."""
    if isinstance(annotation, int):  # one of a few numbers
        return str(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if isinstance(annotation, type) and not get_args(annotation):
        return {"str": "text", "float": "number", "int": "whole number", "bool": "true or false"}.get(
            annotation.__name__, annotation.__name__
        )
    parts = [_kind(part) if not isinstance(part, str) else f'"{part}"' for part in get_args(annotation)]
    if str(annotation).startswith(("tuple", "list", "dict")):
        return "table" if str(annotation).startswith("dict") else f"list of {parts[0]}"
    return " or ".join(dict.fromkeys(part for part in parts if part and part != "NoneType" and "FieldInfo" not in part))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    return "" if field.default is None else f"`{field.default!r}`"


if __name__ == "__main__":
    print(reference())
