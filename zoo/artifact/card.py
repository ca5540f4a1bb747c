"""The model card: what a person reads first; every figure in it was written by a program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zoo.anatomy.coverage import said
from zoo.model.licences import inherited, overall
from zoo.system.quantities import size

if TYPE_CHECKING:
    from zoo.model.model import Model


def card(model: Model, plain: str) -> str:
    """Write the card of a model in Markdown; `plain` says why the ecosystem's library cannot load it, or is empty."""
    spec, library, licences = model.spec, model.family.library, inherited(model)
    lines = [
        "---",
        f"license: {overall(licences)}",
        "library_name: zoo",
        "---",
        "",
        f"# {spec.name}",
        "",
        *([spec.summary, ""] if spec.summary else []),
        f"{model.params:,} parameters, {size(model.bytes)} of weights. Family {spec.family}, task {spec.task}.",
        "",
        "```python",
        "import zoo",
        f'model = zoo.load("{spec.name if spec.packaged else "."}")  # or the path of this folder',
        "```",
        "",
        f"Plain {library} cannot load this folder: {plain}." if plain else f"Plain {library} loads this folder too.",
        "",
    ]
    if model.lineage:
        lines += ["## How it was made", ""]
        for i, stage in enumerate(model.lineage, 1):
            lines.append(f"{i}. `{stage.use}` {_inline(stage.options)}")
            lines += [f"   {left}"] if (left := said(stage.record)) else []
        lines += ["", "## Licences", "", "What it was made of, and so inherits:", ""]
        lines += [*(f"- {licence}" for licence in licences), ""]
    for heading, content in model.notes.items():
        lines += [f"## {heading}", "", *_prose(content), ""]
    return "\n".join(lines)


def _prose(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [f"- {key}: {_inline(value)}" for key, value in content.items()]
    if isinstance(content, list):
        return [", ".join(map(str, content))]
    return [str(content)]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_inline(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
