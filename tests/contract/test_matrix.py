"""docs/matrix.md says what the compressors say."""

from __future__ import annotations

from pathlib import Path

from matrix import matrix


def test_the_matrix_in_the_docs_is_in_step():
    written = (Path(__file__).parents[2] / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert written == matrix(), "run: PYTHONPATH=tests python tests/contract/matrix.py > docs/matrix.md"
