"""Faults found by trying what people bring: each script makes its own input, and ends with 0 where the fault is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("[0-9]*.py"))
OPEN = ("13",)  # by their first two letters


def _marked(script: Path) -> object:
    number = script.stem[:2]
    return pytest.param(
        script, id=script.stem, marks=[pytest.mark.xfail(reason=f"fault {number}", strict=True)] * (number in OPEN)
    )


@pytest.mark.parametrize("script", map(_marked, SCRIPTS))
def test_it_is_gone(script: Path):
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
