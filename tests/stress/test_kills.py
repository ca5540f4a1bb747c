"""A few kills of a tiny run; `kills.py` kills the quickstarts sixty times."""

from __future__ import annotations

from pathlib import Path

from kills import QUIET, Case, kills, undisturbed
from tiny import workplace
from zygote import Zygote


def test_reruns_after_kills_redo_only_what_was_unfinished_and_end_with_the_same_bytes(tmp_path: Path):
    case = Case(workplace(tmp_path), ["stage.2.steps=40"], tmp_path)
    with Zygote() as zygote:
        undisturbed(case, zygote, speeds=(QUIET,))
        found = list(kills(case, zygote, count=4, seed=0, aims=("planning", "checkpoint", "saving", "exchange")))
    assert [one.wrong for one in found] == [[]] * 4, found
