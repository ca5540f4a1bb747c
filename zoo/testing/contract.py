"""The contract of a plugin: everything it adds is asked the same questions, one check for each.

    from zoo.testing.contract import checks, perform

    for check in checks("zoo-example"):
        print(check, perform(check, folder))

`zoo plugins check NAME` prints this as a table; in an author's own tests `[tool.pytest.ini_options] zoo_plugin = "NAME"`
makes every check a test. Listing the checks imports nothing of the plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from zoo.errors import RequestError, nearest
from zoo.plugins import manager
from zoo.testing.bench import Bench, one_thread
from zoo.testing.check import Check as Check
from zoo.testing.check import Result as Result
from zoo.testing.check import Skipped as Skipped
from zoo.testing.check import perform as perform
from zoo.testing.checks.compressors import checks_of_compressor
from zoo.testing.checks.evaluators import checks_of_data, checks_of_evaluator
from zoo.testing.checks.losses import checks_of_loss
from zoo.testing.checks.models import checks_of_models
from zoo.testing.checks.plugins import checks_of_command, checks_of_family, checks_of_plugin, checks_of_words

LIGHT = ("plugin", "command", "docs")  # kinds and checks that compute nothing, and need no torch
ORDER = ("plugin", "family", "model", "compressor", "loss", "evaluator", "data", "command")


def checks(plugin: str) -> list[Check]:
    """Return every check of a plugin, those of one thing after another.

    Raises:
        UnknownName: no such plugin is installed.
    """
    bench = Bench(manager.find(plugin))
    found = list(_everything(bench))
    subjects = dict.fromkeys((check.kind, check.name) for check in found)
    place = {
        subject: number for number, subject in enumerate(sorted(subjects, key=lambda subject: ORDER.index(subject[0])))
    }
    found.sort(key=lambda check: place[check.kind, check.name])
    return [
        check if {check.kind, check.check} & set(LIGHT) else replace(check, run=partial(_on_one_thread, check.run))
        for check in found
    ]


def only(found: Iterable[Check], wanted: str) -> list[Check]:
    """Return the checks of one kind ("loss"), of one thing ("tiny-thing"), or of one sort ("estimate").

    Raises:
        RequestError: there is none; names the nearest.
    """
    everything = list(found)
    chosen = [check for check in everything if wanted in _labels(check)]
    if not chosen:
        known = dict.fromkeys(label for check in everything for label in _labels(check))
        raise RequestError(
            f"There is nothing called {wanted!r} to check.{nearest(wanted, known)} Kinds: {', '.join(dict.fromkeys(c.kind for c in everything))}."
        )
    return chosen


def _labels(check: Check) -> tuple[str, ...]:
    full = check.name.partition(" on ")[0]
    return check.kind, check.name, full, full.rpartition(":")[2], check.check


def _everything(bench: Bench) -> Iterator[Check]:
    yield from checks_of_plugin(bench)
    yield from checks_of_words(bench)
    yield from checks_of_family(bench)
    yield from checks_of_models(bench)
    for declared in bench.plugin.names:
        if declared.kind == "compressor":
            yield from checks_of_compressor(bench, declared)
        elif declared.kind == "loss":
            yield from checks_of_loss(bench, declared)
        elif declared.kind == "evaluator":
            yield from checks_of_evaluator(bench, declared)
        elif declared.kind == "data":
            yield from checks_of_data(bench, declared)
        elif declared.kind == "command":
            yield from checks_of_command(bench, declared.name)


def _on_one_thread(run: Callable[[Path], None], folder: Path) -> None:
    with one_thread():
        run(folder)
