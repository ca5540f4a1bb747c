"""Several processes and threads at once, once or twice each; `together.py` does so many times."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import together
import torch
from tiny import workplace
from zygote import Zygote

import zoo


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.mktemp("together")).parent


def test_of_runs_into_one_directory_one_goes_through_and_the_others_say_who_is_there(zygote: Zygote, place: Path):
    report = together.Report()
    together.runs(zygote, place, report, rounds=2, draw=random.Random(0))
    assert not report.wrong and report.tried["runs: went through"] >= 2, report
    assert report.tried.total() == 6


def test_saves_to_one_place_come_one_after_the_other(zygote: Zygote, place: Path):
    report = together.Report()
    together.saves(zygote, place, report, rounds=2)
    assert not report.wrong and report.tried.total() == 44, report


def test_a_cache_is_filled_by_several_and_after_a_kill():
    report = together.Report()
    together.downloads(report, rounds=1, draw=random.Random(0), kill=True)
    assert not report.wrong and report.tried["downloads: killed"] == 1, report


def test_threads_that_load_leave_each_other_and_torch_alone():
    """Building on the meta device patches torch for a moment."""
    wrong: list[str] = []

    def load() -> None:
        for _ in range(4):
            model = zoo.load("tiny-code")
            other = torch.nn.Linear(2, 2)
            wrong.extend(str(t.device) for t in (*model.tensors().values(), other.weight) if t.is_meta)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and not torch.nn.Linear(2, 2).weight.is_meta
