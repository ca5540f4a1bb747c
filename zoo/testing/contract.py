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
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zoo.errors import RequestError, nearest
from zoo.plugins import manager
from zoo.plugins.kinds import KINDS, MODEL
from zoo.testing.bench import Bench, one_thread
from zoo.testing.check import Check as Check
from zoo.testing.check import Result as Result
from zoo.testing.check import Skipped as Skipped
from zoo.testing.check import perform as perform
from zoo.testing.checks.models import checks_of_models
from zoo.testing.checks.plugins import checks_of_plugin, checks_of_words

if TYPE_CHECKING:
    from zoo.plugins.declarations import Declared

DOCS = "docs"  # the check of what a thing says of itself


def _order() -> list[str]:
    """The kinds as they are reported: the plugin itself, its families and their models, and whatever else it adds."""
    order = ["plugin", *KINDS]
    order.insert(order.index("family") + 1, MODEL)
    return order


def _is_light(check: Check) -> bool:
    """Whether a check computes nothing, and needs no torch."""
    return check.check == DOCS or check.kind == "plugin" or (check.kind in KINDS and not KINDS[check.kind].computes)


def checks(plugin: str) -> list[Check]:
    """Return every check of a plugin, those of one thing after another.

    Raises:
        UnknownName: no such plugin is installed.
    """
    bench = Bench(manager.find(plugin))
    everything = list(_everything(bench))
    subjects = dict.fromkeys((check.kind, check.name) for check in everything)
    order = _order()
    rank = {
        subject: number for number, subject in enumerate(sorted(subjects, key=lambda subject: order.index(subject[0])))
    }
    everything.sort(key=lambda check: rank[check.kind, check.name])
    return [
        check if _is_light(check) else replace(check, run=partial(_on_one_thread, check.run)) for check in everything
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
    yield from checks_of_models(bench)
    for declaration in bench.plugin.names:
        if KINDS[declaration.kind].checks:
            yield from _checks_of(declaration.kind)(bench, declaration)


def _checks_of(kind: str) -> Callable[[Bench, Declared], Iterator[Check]]:
    module, _, function = KINDS[kind].checks.partition(":")
    return cast("Callable[[Bench, Declared], Iterator[Check]]", getattr(import_module(module), function))


def _on_one_thread(run: Callable[[Path], None], folder: Path) -> None:
    with one_thread():
        run(folder)
