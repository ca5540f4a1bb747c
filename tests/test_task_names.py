"""Tasks are classes: what a task does differently is in its class, and nobody outside compares its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
NAMES = {"causal-lm", "masked-lm", "seq2seq"}  # which mean nothing but a task
FOLDERS = ("zoo", "compress", "plugins", "examples")


def compared(tree: ast.AST) -> Iterator[ast.AST]:
    """Comparisons of a task, or with the name of one; tables of names, and cases, that stand for such a comparison."""
    for node in ast.walk(tree):
        sides: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            sides = [*node.keys]
        elif isinstance(node, ast.Match):
            sides = [case.pattern for case in node.cases]
        parts = [part for side in sides if side is not None for part in ast.walk(side)]
        words = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        of_a_model = any(isinstance(part, ast.Attribute) and part.attr == "task" for part in parts)
        if words & NAMES or (of_a_model and words):
            yield node


def test_nobody_compares_the_name_of_a_task():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in compared(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "model.spec.task == 'masked-lm'",
        "spec.task in ('', 'other')",
        "results['task'] not in ('seq2seq', 'x')",
        "LENGTHS = {'causal-lm': 1}",
        "match name:\n    case 'seq2seq':\n        pass",
    ],
)
def test_a_comparison_is_found(code: str):
    assert len(list(compared(ast.parse(code)))) == 1
