"""docs/stages.md says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from write_stages import reference

pytestmark = pytest.mark.quick


def test_the_reference_is_in_step_with_the_code() -> None:
    written = (Path(__file__).parents[2] / "docs" / "stages.md").read_text(encoding="utf-8")
    assert written.rstrip("\n") == reference().rstrip("\n"), "run: python docs/write_stages.py > docs/stages.md"


def test_every_option_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert rows
    assert not [row for row in rows if row.rstrip().endswith("|  |")]
