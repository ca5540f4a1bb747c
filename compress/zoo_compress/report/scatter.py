"""Size against quality: where each stage, the control and the baselines stand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from zoo.system.quantities import measured, quantity
from zoo_compress.report.axes import Axis, Box, axis, label_boxes, text_width
from zoo_compress.report.columns import DISK, Column, Data, Row, rows
from zoo_compress.report.plots import LEFT, RIGHT, SIZE, WIDTH, fit, frame, line, svg, text

LABEL_HEIGHT = 16.0
MANY = 10  # with more stages than this, they are labelled with their numbers in the table
SHAPES = {
    "stage": '<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="mark {style}"/>',
    "control": '<path d="M{x:.1f} {y:.1f} m0 -6.5 l6.5 6.5 l-6.5 6.5 l-6.5 -6.5 z" class="mark {style}"/>',
    "baseline": '<path d="M{x:.1f} {y:.1f} m-5 -5 h10 v10 h-10 z" class="mark {style}"/>',
}


class Spot(NamedTuple):
    """Where a row stands in the drawing; a baseline that has no size stands at the right end of its line."""

    row: Row
    x: float
    y: float
    low: float  # the interval's ends; `y` itself without one
    high: float
    label: str
    style: str


def scatter(results: Data, column: Column, ident: str) -> str:
    """Draw one labelled point per stage with its interval; empty where there is nothing to compare."""
    table = [row for row in rows(results) if column.value(row) is not None]
    sized = [row for row in table if DISK.value(row) is not None]
    level = _near([row for row in table if row.kind == "baseline" and row not in sized], sized, column)
    if not any(row.kind == "stage" for row in sized) or len(sized) + len(level) < 2:
        return ""
    top, bottom = 34.0, 296.0 + 8 * max(len(table) - 8, 0)
    x = axis([DISK.value(row) or 0.0 for row in sized], LEFT, RIGHT - 8, zero=True, spread=40.0)
    y = axis([end for row in (*sized, *level) for end in _ends(column, row)], bottom, top)
    spots = _spots(results, [*level, *sized], column, x, y)
    title = ", ".join(part for part in (column.label, column.unit, column.hint) if part)
    body = frame(x, y, units=("bytes", column.unit), titles=("size on disk", title))
    body += [line(LEFT, spot.y, RIGHT, spot.y, "rule") for spot in spots[: len(level)]]
    body.append(_journey([spot for spot in spots if spot.row.kind == "stage"]))
    body += _labels(spots, lines=len(level), bounds=(LEFT, top - 6, WIDTH, bottom))
    body += [_mark(spot, column) for spot in spots[len(level) :]]
    said = "; ".join(f"{s.row.label}: {quantity(DISK.value(s.row), 'bytes')}, {_value(column, s.row)}" for s in spots)
    return svg(ident, bottom + 44, f"Size on disk against {column.label}", said, body)


def off_the_chart(results: Data, column: Column) -> str:
    """Say in words where the baselines are that lie too far away to be drawn to scale."""
    table = [row for row in rows(results) if column.value(row) is not None]
    sized = [row for row in table if DISK.value(row) is not None]
    level = [row for row in table if row.kind == "baseline" and row not in sized]
    far = [row for row in level if row not in _near(level, sized, column)]
    return f"Too far away to draw: {', '.join(f'{row.label} at {_value(column, row)}' for row in far)}." if far else ""


def _value(column: Column, row: Row) -> str:
    return " ".join(part for part in measured(*column.interval(row), column.unit) if part)


def _ends(column: Column, row: Row) -> list[float]:
    return [end for end in column.interval(row) if end is not None]


def _near(level: list[Row], sized: list[Row], column: Column) -> list[Row]:
    """Keep the baselines within reach: one far away would press all the stages into a line."""
    ends = [end for row in sized for end in _ends(column, row)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    reach = 2 * (high - low) or abs(high)
    return [row for row in level if low - reach <= (column.value(row) or 0.0) <= high + reach]


def _spots(results: Data, shown: Sequence[Row], column: Column, x: Axis, y: Axis) -> list[Spot]:
    """Turn rows into pixels, with the label and the style of each."""
    last = sum(row.kind == "stage" for row in rows(results)) - 1
    spots = []
    for row in shown:
        size, ends = DISK.value(row), _ends(column, row)
        style: str = row.kind
        label = fit(row.label, 150)
        if row.kind == "stage":
            style = {0: "first", last: "last"}.get(row.number, "stage")
            label = str(row.number) if last >= MANY else label
        at = RIGHT if size is None else x(size)
        spots.append(Spot(row, at, y(ends[0]), y(min(ends)), y(max(ends)), label, style))
    return spots


def _journey(spots: Sequence[Spot]) -> str:
    """Draw the thin line that leads from stage to stage."""
    corners = " ".join(f"{spot.x:.1f},{spot.y:.1f}" for spot in spots)
    return f'<polyline points="{corners}" class="journey"/>'


def _mark(spot: Spot, column: Column) -> str:
    """Draw a point with its interval; the value appears where the pointer rests."""
    size = quantity(DISK.value(spot.row), "bytes")
    tip = f"<title>{escape(f'{spot.row.label}: {size}, {_value(column, spot.row)}')}</title>"
    shape = SHAPES[spot.row.kind].format(x=spot.x, y=spot.y, style=spot.style)
    return f"<g>{tip}{line(spot.x, spot.low, spot.x, spot.high, f'interval {spot.style}')}{shape}</g>"


def _labels(spots: Sequence[Spot], *, lines: int, bounds: Box) -> list[str]:
    """Write the labels where they touch nothing, with a leader where one had to move away from its point."""
    taken = [(LEFT, spot.y - 1, RIGHT, spot.y + 1) for spot in spots[:lines]]
    for spot in spots[lines:]:
        taken += [(spot.x - 7, spot.y - 7, spot.x + 7, spot.y + 7), (spot.x - 2, spot.high, spot.x + 2, spot.low)]
    anchors = [(spot.x, spot.y, text_width(spot.label, SIZE) + 4) for spot in spots]
    drawn = []
    for index, (spot, box) in enumerate(zip(spots, label_boxes(anchors, LABEL_HEIGHT, taken, bounds), strict=True)):
        if box is None:
            continue  # the point's own title and the table still name it
        side = min(max(spot.x, box[0]), box[2]), min(max(spot.y, box[1]), box[3])
        away = max(abs(side[0] - spot.x), abs(side[1] - spot.y)) > 12
        drawn += [line(spot.x, spot.y, *side, "leader")] if away and index >= lines else []
        drawn.append(text((box[0] + box[2]) / 2, box[3] - 4, spot.label, f"label {spot.style}", "middle"))
    return drawn
