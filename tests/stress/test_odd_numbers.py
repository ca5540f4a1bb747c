"""One tiny model through what finite.py does to seven."""

from __future__ import annotations

from pathlib import Path

import pytest
from finite import damaged_weights, odd_data, odd_requests, odd_weights


@pytest.mark.parametrize("part", [damaged_weights, odd_data, odd_requests])
def test_bad_numbers_and_records_are_named(part: object, tmp_path: Path):
    outcomes = list(part("qwen3", tmp_path))  # type: ignore[operator]
    assert len(outcomes) > 30
    assert [vars(outcome) for outcome in outcomes if outcome.what not in ("named", "right")] == []


def test_odd_weights_give_finite_results_twice_alike(tmp_path: Path):
    outcomes = [outcome for outcome, _ in zip(odd_weights("gpt2", tmp_path), range(18), strict=False)]
    assert [vars(outcome) for outcome in outcomes if outcome.what not in ("named", "right")] == []
