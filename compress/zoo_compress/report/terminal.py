"""The report as a table for the terminal: what does not fit its width is left out, and named below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.system.quantities import DASH, shorten
from zoo_compress.report.columns import DISK, PARAMETERS, PEAK, TIME, Column, Data, Row, cell, columns, rows, stages

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH = 100  # where there is no terminal
LABEL = 17  # at most, for the first column


def table(results: Data, *, width: int = WIDTH) -> Table:
    """Return the stages as a rich table of at most `width` characters, original first, then control and baselines."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines, original = rows(results), next(iter(stages(results)), None)
    shown, left_out = _fitting(columns(results), lines, original, width=width)
    made = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), header_style="bold", caption_justify="left")
    made.add_column("stage", max_width=LABEL, overflow="ellipsis", no_wrap=True)
    for column in shown:
        made.add_column(Text(_heading(column)), justify="right", no_wrap=True)
    before = "stage"
    for row in lines:
        if row.kind != before and made.rows:
            made.add_section()
        before = row.kind
        made.add_row(_label(row), *(_text(column, row, original) for column in shown))
    if left_out:
        made.caption = Text(
            shorten(f"Also in report.html: {', '.join(column.label for column in left_out)}", 3 * WIDTH)
        )
    return made


def _label(row: Row) -> Text:
    from rich.text import Text

    style = {"stage": "bold", "control": "yellow", "baseline": "dim"}[row.kind]
    mark = Text("\ncontrol", style="dim") if row.kind == "control" and row.label != "control" else Text("")
    return Text(shorten(row.label, LABEL), style=style) + mark


def _text(column: Column, row: Row, original: Row | None) -> Text:
    """Put the value on the first line, and below it, dim, what else there is to say."""
    from rich.text import Text

    main, *below = _texts(column, row, original)
    return Text(main, style="dim" if main == DASH else "") + Text("".join(f"\n{part}" for part in below), style="dim")


def _texts(column: Column, row: Row, original: Row | None) -> list[str]:
    """The lines of a cell: the value, its interval, how few samples there were for one, its relation to the original."""
    made = cell(column, row, original)
    beside = made.spread.startswith("±") and not column.cost
    main = f"{made.main} {made.spread}" if beside else made.main
    few = "" if made.spread or column.cost else made.count
    around = [made.relative, made.relative_spread]
    around = [" ".join(around).strip()] if made.relative_spread.startswith("±") else around
    return [main, *filter(None, ["" if beside else made.spread, few, *around])]


def _heading(column: Column) -> str:
    """Break a heading over lines, as the column below it is narrow."""
    short = {PEAK.key: "stage peak", TIME.key: "time", PARAMETERS.key: "params", DISK.key: "disk"}
    return "\n".join(shorten(word, 12) for word in short.get(column.key, f"{column.label} {column.shown_unit}").split())


def _fitting(
    columns: list[Column], lines: list[Row], original: Row | None, *, width: int
) -> tuple[list[Column], list[Column]]:
    """Keep the columns that fit, the first measure of quality before all; what the compressing itself took goes first."""
    labels = [min(LABEL, max(len(row.label), len(row.kind))) for row in lines]
    room, keys = width - max([len("stage"), *labels]) - 3, set[str]()
    first = next((column for column in columns if not column.cost), None)
    for column in sorted(columns, key=lambda column: (column != first, column in (PEAK, TIME))):
        texts = [line for row in lines for line in _texts(column, row, original)] + _heading(column).split("\n")
        needed = max(map(len, texts)) + 2
        if needed <= room:
            room -= needed
            keys.add(column.key)
    return [c for c in columns if c.key in keys], [c for c in columns if c.key not in keys]
