"""docs/matrix.md: which compressor applies to which model, and why not where not.

    PYTHONPATH=tests python tests/contract/matrix.py > docs/matrix.md

Asked of `check`, on skeletons; that what applies is exact, and what is refused leaves the model alone, the contract
tests show for every cell.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cases import BASES, OPTIONS, TARGETS, base, options

from zoo import registry
from zoo.errors import ZooError
from zoo.model.model import Model

HEAD = """\
# What applies to what

Written by `PYTHONPATH=tests python tests/contract/matrix.py > docs/matrix.md` from the cases of the contract tests; a
test keeps it in step. A ✓ is a stage that was planned exactly, applied, saved, and reloaded with bit-identical outputs
in a fresh process. A number is a refusal, said in the plan before any work, with the model left alone: see below.
"""


def matrix() -> str:
    """Return docs/matrix.md."""
    with tempfile.TemporaryDirectory() as folder:
        skeletons = {name: base(name, Path(folder)).skeleton() for name in BASES}
    refusals: list[str] = []
    rows = [_row(name, model, refusals) for name, model in skeletons.items()]
    uses = list(OPTIONS)
    lines = [
        HEAD,
        _line(["model", "modality", "class", "aimed at", *(f"`{use}`" for use in uses)]),
        _line(["---"] * 4 + [":-:"] * len(uses)),
        *rows,
        "",
    ]
    lines += [f"{number}. {sentence}" for number, sentence in enumerate(refusals, 1)]
    lines += [
        "",
        "## What the stages were run with",
        "",
        _line(["stage", "options", "for other models"]),
        _line(["---"] * 3),
    ]
    lines += [_line([f"`{use}`", _written(OPTIONS[use]), "; ".join(_exceptions(use))]) for use in uses]
    return "\n".join(lines) + "\n"


def _row(name: str, model: Model, refusals: list[str]) -> str:
    cells = []
    for use in OPTIONS:
        sentence = refusal(name, model, use)
        if sentence and sentence not in refusals:
            refusals.append(sentence)
        cells.append(str(refusals.index(sentence) + 1) if sentence else "✓")
    target = f"`{TARGETS[name]}`" if name in TARGETS else "each stage's default"
    return _line([name, model.spec.modality, f"`{type(model.module).__name__}`", target, *cells])


def refusal(name: str, model: Model, use: str) -> str:
    """The sentence with which a compressor refuses a model, which it does not name; "" where it applies."""
    compressor = registry.compressor(use)
    try:
        compressor.check(model, model.state(), compressor.Options(**options(name, use)))
    except ZooError as error:
        return str(error).replace(model.spec.name, "the model").replace(name, "the model")
    return ""


def _exceptions(use: str) -> Iterator[str]:
    """The models for which the stage has other options than those of the table, targets aside."""
    for name in BASES:
        own = {key: value for key, value in options(name, use).items() if key != "target"}
        if own != OPTIONS[use]:
            yield f"{name}: {_written(own)}"


def _written(values: dict[str, Any]) -> str:
    return ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in values.items()) or "none"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(matrix(), end="")
