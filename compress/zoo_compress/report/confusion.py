"""Which answer was taken for which: a heat map of a metric's "confusion", the original beside the last stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from zoo.system.quantities import clean, finite, quantity
from zoo_compress.report.axes import text_width
from zoo_compress.report.columns import Column, Row
from zoo_compress.report.plots import SIZE, WIDTH, fit, svg, text

LARGEST = 60  # rows or columns; beyond that nothing could be read
WIDEST, TALLEST = 110.0, 90.0  # room for the labels at the left and on top
CELL = 34.0
FADED = 0.6  # fill above this share is strong enough for a number in the colour of the page


class Matrix(NamedTuple):
    """How often each answer was given (columns) for what was right (rows)."""

    true: list[str]
    predicted: list[str]
    counts: list[list[float]]


def matrix(column: Column, row: Row) -> Matrix | None:
    """Read the confusions of a metric; None where there are none, or they make no table."""
    entry = row.metrics.get(column.key)
    fields = entry.get("confusion") if isinstance(entry, Mapping) else None
    if not isinstance(fields, Mapping):
        return None
    true, predicted, counts = (fields.get(key) for key in ("true", "predicted", "counts"))
    if not all(isinstance(part, list) and 0 < len(part) <= LARGEST for part in (true, predicted, counts)):
        return None
    assert isinstance(true, list) and isinstance(predicted, list) and isinstance(counts, list)
    table = [
        [finite(value) for value in line] for line in counts if isinstance(line, list) and len(line) == len(predicted)
    ]
    known = [[value for value in line if value is not None and value >= 0] for line in table]
    if len(known) != len(true) or any(len(line) != len(predicted) for line in known) or not any(map(sum, known)):
        return None
    return Matrix([clean(name) for name in true], [clean(name) for name in predicted], known)


def mistakes(confusions: Matrix, *, count: int = 3) -> list[str]:
    """Say which answers were most often taken for another: "4 for 9 (12 of 45)"."""
    wrong = [
        (value, true, other, sum(line))
        for true, line in zip(confusions.true, confusions.counts, strict=True)
        for other, value in zip(confusions.predicted, line, strict=True)
        if value and other != true
    ]
    wrong.sort(key=lambda mistake: -mistake[0])
    return [
        f"{true} for {other} ({quantity(value)} of {quantity(total)})" for value, true, other, total in wrong[:count]
    ]


def heat(confusions: Matrix, title: str, ident: str, *, beside: Sequence[Matrix] = ()) -> str:
    """Draw the table: right answers in one colour, wrong ones in the other, the stronger the larger their share of the row.

    Args:
        beside: the tables drawn next to it, whose cells are to be as large and as high up.
    """
    tables = (confusions, *beside)
    left = min(max(text_width(name, SIZE) for table in tables for name in table.true) + 8, WIDEST)
    size = min(CELL, (WIDTH - left - 2) / max(len(table.predicted) for table in tables))
    tall = max(text_width(name, SIZE) for table in tables for name in table.predicted)
    upright = tall > size - 2
    top = 30 + (min(tall, TALLEST) if upright else 14)
    body = [text(2, 14, fit(title, WIDTH - 4), "title")]
    body.append(
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{len(confusions.predicted) * size:.1f}" height="{len(confusions.true) * size:.1f}" class="track"/>'
    )
    for index, name in enumerate(confusions.predicted):
        body.append(
            _heading(left + (index + 0.5) * size, top - 6, name, upright=upright, every=_every(size), index=index)
        )
    for index, (name, line) in enumerate(zip(confusions.true, confusions.counts, strict=True)):
        at = top + index * size
        if index % _every(size) == 0:
            body.append(text(left - 6, at + size / 2 + 4, fit(name, left - 8), "", "end"))
        body += [
            _cell(confusions, index, column, left + column * size, at, size)
            for column, value in enumerate(line)
            if value
        ]
    worst = ", ".join(mistakes(confusions)) or "none"
    return svg(
        ident,
        top + len(confusions.true) * size + 2,
        title,
        f"Rows: what was right. Columns: what was answered. Most mistaken: {worst}.",
        body,
    )


def _every(size: float) -> int:
    """Label every how many rows, so that labels keep apart."""
    return max(1, round(13 / size + 0.49))


def _heading(x: float, y: float, name: str, *, upright: bool, every: int, index: int) -> str:
    if index % every:
        return ""
    if not upright:
        return text(x, y, name, "", "middle")
    turned = text(x + 4, y, fit(name, TALLEST), "", "start")
    return turned.replace("<text ", f'<text transform="rotate(-90 {x + 4:.1f} {y:.1f})" ', 1)


def _cell(confusions: Matrix, row: int, column: int, x: float, y: float, size: float) -> str:
    value, line = confusions.counts[row][column], confusions.counts[row]
    true, answer = confusions.true[row], confusions.predicted[column]
    share = value / (sum(line) or 1)
    kind = "right" if true == answer else "wrong"
    strength = f'fill-opacity="{0.2 + 0.8 * share**0.7:.2f}"'
    tip = f"<title>{escape(f'{true} taken for {answer}: {quantity(value)} of {quantity(sum(line))}')}</title>"
    square = f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" class="cell {kind}" {strength}>{tip}</rect>'
    number = quantity(value)
    if text_width(number, SIZE) > size - 3 or size < 14:
        return square
    return square + text(x + size / 2, y + size / 2 + 4, number, "number on" if share > FADED else "number", "middle")
