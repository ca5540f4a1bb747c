"""The quick subset, `pytest -m quick`, has a test of every room."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

HERE = Path(__file__).parent
SLOW = {"attacks", "stress", "examples", "faults", "sweep"}  # whole runs in processes of their own
ROOMS = sorted({file.parent.relative_to(HERE) for file in HERE.glob("*/**/test_*.py")})


@pytest.mark.parametrize("room", [room for room in ROOMS if room.parts[0] not in SLOW], ids=str)
def test_every_room_has_a_quick_test(room: Path):
    assert any("mark.quick" in file.read_text(encoding="utf-8") for file in (HERE / room).glob("test_*.py"))
