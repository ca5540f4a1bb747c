"""`zoo plugins check`: the contract tests of everything a plugin adds."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import output
from zoo.plugins import manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.testing.contract import Check, Result

COLUMNS = ("kind", "name", "check", "seconds", "result")  # what may be long, last


def check(
    name: Annotated[str, typer.Argument(help="A name from `zoo plugins`.", autocompletion=output.complete_plugin)],
    only: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Only these: a kind (loss), a name the plugin adds, or a check (estimate)."),
    ] = None,
    json: output.JsonOption = False,
) -> None:
    """Run the contract tests on everything a plugin adds."""
    output.settings.shows_faults = True
    plugin = manager.find(name)
    with output.status("Importing"):
        from zoo.testing import contract

    todo = contract.checks(plugin.name)
    results = list(_run(contract.only(todo, only) if only else todo))
    if json:
        output.print_json(
            {"plugin": plugin.name, "version": plugin.version, "checks": [_facts(result) for result in results]}
        )
    else:
        output.print_table(COLUMNS, _rows(results), right=("seconds",))
        print(_summary(plugin.name, results))
    if any(result.outcome == "failed" for result in results):
        raise typer.Exit(1)


def _run(todo: Sequence[Check]) -> Iterator[Result]:
    """Run the checks in turn, saying on stderr what is going on; one that fails does not stop the others."""
    import tempfile
    from pathlib import Path

    from zoo.testing.contract import perform

    with tempfile.TemporaryDirectory(prefix="zoo-check-") as folder, _progress(todo) as say:
        for check in todo:
            say(check, None)
            result = perform(check, Path(folder))
            say(check, result)
            if output.settings.verbose and result.error is not None:
                traceback.print_exception(result.error)
            yield result


@contextmanager
def _progress(todo: Sequence[Check]) -> Iterator[Callable[[Check, Result | None], None]]:
    """Show the check at work on a terminal; where stderr is a file, a line for each thing and each failure."""
    if output.settings.quiet:
        yield lambda check, result: None
        return
    if not sys.stderr.isatty():
        subjects: set[tuple[str, str]] = set()

        def note(check: Check, result: Result | None) -> None:
            if result is None and (check.kind, check.name) not in subjects:
                subjects.add((check.kind, check.name))
                output.say(f"checking {check.kind} {check.name}")
            elif result is not None and result.outcome == "failed":
                output.say(f"  {check.check}: {result}")

        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as shown:
        task = shown.add_task("", total=len(todo))

        def move(check: Check, result: Result | None) -> None:
            shown.update(task, description=f"{check.kind} {check.name}: {check.check}", advance=int(result is not None))

        yield move


def _rows(results: Iterable[Result]) -> Iterator[tuple[str, ...]]:
    """One row a check; those of one thing that do not apply for one reason stand in one row."""

    def alike(result: Result) -> tuple[Any, ...]:
        check = result.check
        return (check.kind, check.name, result.reason if result.outcome == "not applicable" else check.check)

    for _, group in itertools.groupby(results, key=alike):
        members = list(group)
        check = members[0].check
        names = ", ".join(member.check.check for member in members)
        yield check.kind, check.name, names, f"{sum(member.seconds for member in members):.1f}", str(members[0])


def _summary(plugin: str, results: Sequence[Result]) -> str:
    counts = {
        outcome: sum(result.outcome == outcome for result in results) for outcome in ("ok", "failed", "not applicable")
    }
    words = f"{counts['ok']} ok, {counts['failed']} failed, {counts['not applicable']} not applicable"
    return f"{plugin}: {len(results)} checks in {sum(result.seconds for result in results):.0f} s: {words}."


def _facts(result: Result) -> dict[str, Any]:
    check = result.check
    return {
        "kind": check.kind,
        "name": check.name,
        "check": check.check,
        "result": result.outcome,
        "reason": result.reason or None,
        "seconds": round(result.seconds, 3),
    }
