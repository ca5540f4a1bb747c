"""Calls timed in turn, so that a busy machine slows all of them alike; shared by the benchmarks of layers."""

import statistics
import time
from collections.abc import Callable
from typing import Any

Calls = dict[str, Callable[[], Any]]
Clock = Callable[[], float]


def in_turn(calls: Calls, repeats: int, *, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Return the seconds of each call in each repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return seconds


def interleave(calls: Calls, repeats: int, *, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each call, after one that is not counted."""
    for call in calls.values():
        call()
    return {name: statistics.median(values) for name, values in in_turn(calls, repeats, clock=clock).items()}
