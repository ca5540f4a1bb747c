"""What commands print: data on stdout, everything else on stderr. For the commands of plugins as well."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from zoo.errors import ZooWarning, plain
from zoo.system.quantities import count as count
from zoo.system.quantities import size as size


@dataclass
class Settings:
    """What the options before or after the command said."""

    verbose: bool = False
    quiet: bool = False
    shows_faults: bool = False  # the command itself shows what is wrong with plugins


settings = Settings()

ENOUGH = 40  # characters of a column that is cut
WORD = 16  # characters of a word that is never parted

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """The catalogued models whose names begin like that, for shell completion."""
    from zoo.catalog import catalogue

    return [(name, spec.summary) for name, spec in catalogue().items() if name.startswith(incomplete)]


def complete_plugin(incomplete: str) -> list[str]:
    """The plugins whose names begin like that, for shell completion."""
    from zoo.plugins.manager import plugins_in_use

    return [plugin.name for plugin in plugins_in_use() if plugin.name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name from `zoo list`, or the path of a saved model.", autocompletion=complete_model
    ),
]


WeightsOption = Annotated[
    str,
    typer.Option(
        metavar="WHICH", help='"dequantized" for plain weights made of a quantizer\'s codes, "random", or a directory.'
    ),
]


def prepare() -> None:
    """Start from plain settings, and never fail over a character that the terminal cannot show."""
    settings.__init__()  # type: ignore[misc]  # one process may run several commands
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


# --- data -------------------------------------------------------------------------------------------------------------


def print_json(data: Any) -> None:
    """Print data as JSON; NaN and infinity, which JSON cannot hold, become null."""
    print(json.dumps(_plain(data), indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    cut: str = "",
    spare: Sequence[str] = (),
) -> None:
    """Print rows under column names: a rich table on a terminal, aligned text of full width when piped.

    Where a terminal is too narrow for every number, and for every name in the first column, each row is a list of facts.

    Args:
        right: the columns to align on the right.
        cut: the column of which a terminal shows as much as fits in one line.
        spare: the columns that a terminal too narrow to show enough of that does without, the first one first.
    """
    rows = [tuple(map(plain, row)) for row in rows]
    if not sys.stdout.isatty():
        _print_aligned(columns, rows, right=right)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table(box=box.SIMPLE_HEAD, pad_edge=False)
    widths = {name: 3 + max(len(row[i]) for row in [columns, *rows]) for i, name in enumerate(columns) if name != cut}
    for name in spare:
        if sum(widths.values()) + ENOUGH > console.width:
            del widths[name]
    shown = [i for i, name in enumerate(columns) if name in widths or name == cut]
    texts = {i: [columns[i], *(row[i] for row in rows)] for i in shown}
    least = {i: _narrowest(texts[i], number=columns[i] in right, name=not i) for i in shown}
    if sum(least.values()) + 3 * len(shown) - 1 > console.width:
        for row in rows:
            print_facts((columns[i], row[i]) for i in shown)
            print()
        return
    for i in shown:
        width, number = None if columns[i] == cut else least[i], columns[i] in right
        table.add_column(
            columns[i], justify="right" if number else "left", overflow="fold", min_width=width, no_wrap=number
        )
    for row in rows:
        table.add_row(
            *(Text(row[i], no_wrap=True, overflow="ellipsis") if columns[i] == cut else Text(row[i]) for i in shown)
        )
    console.print(table)


def _narrowest(texts: Sequence[str], *, number: bool, name: bool) -> int:
    """How few characters a column may have: its numbers whole, its names too unless they are long, of the rest the words."""
    pieces = texts if number or name else [word for text in texts for word in text.split()]
    return max((len(piece) for piece in pieces if number or len(piece) <= (ENOUGH if name else WORD)), default=0)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print labelled facts, one a line; empty ones are left out."""
    shown = [(plain(label), plain(text)) for label, text in facts if text]
    width = max((len(label) for label, _ in shown), default=0)
    for label, text in shown:
        print(f"{label:<{width}}  {text}")


def _print_aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str]) -> None:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _plain(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(item) for item in data]
    return data if data is None or isinstance(data, (str, int, bool)) else str(data)


# --- everything else --------------------------------------------------------------------------------------------------


def error(text: str) -> None:
    """Print the sentence that says why the command failed."""
    _tell(f"{_coloured('error:', 31)} {text}")


def warn(text: str) -> None:
    """Print a warning, unless the user wants quiet."""
    if not settings.quiet:
        _tell(f"{_coloured('warning:', 33)} {text}")


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """What zoo warns of while it works is said as other warnings are, and each once."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            warn(str(message)) if issubclass(category, ZooWarning) else others(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def say(text: str) -> None:
    """Print a remark, unless the user wants quiet."""
    if not settings.quiet:
        _tell(text)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed, or a full disk: the work does not end for that
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show on a terminal's stderr what is going on and for how long; it leaves nothing behind."""
    if settings.quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(text, total=None)
        yield


def _coloured(text: str, colour: int) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"
