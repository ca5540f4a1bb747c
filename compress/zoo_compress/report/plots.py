"""Bars and curves, drawn by hand as inline SVG: colours come from the page's style, so light, dark and print just work.

Every text that comes from data passes `escape`; every coordinate comes from an `Axis`, which keeps it inside the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from zoo.system.quantities import quantity, shorten, times
from zoo_compress.report.axes import Axis, axis, text_width, tick_labels
from zoo_compress.report.columns import Column, Row

WIDTH, SIZE = 460.0, 12.0  # of the drawing and of its text; the page scales both
LEFT, RIGHT = 48.0, 450.0  # of the plotted area
POINTS = 300  # a curve with more is thinned, keeping its extremes
Series = tuple[str, str, list[tuple[float, float | None]]]  # label, style class, (step, value)


def svg(ident: str, height: float, title: str, desc: str, body: Sequence[str]) -> str:
    """Wrap a drawing so that it scales, and says what it shows to those who do not see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(desc)}</desc>{"".join(body)}</svg>'
    )


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    """Draw one line of text with its baseline at `y`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Draw a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def fit(words: str, room: float) -> str:
    """Shorten `words` until they are no wider than `room` pixels."""
    length = len(words)
    while length > 1 and text_width(shorten(words, length), SIZE) > room:
        length -= 1
    return shorten(words, length)


def frame(x: Axis, y: Axis, *, units: tuple[str, str], titles: tuple[str, str]) -> list[str]:
    """Draw the grid with its ticks and both titles: the upright axis's on top, the other's below on the right."""
    body = [text(2, y.end - 20, fit(titles[1], RIGHT), "title")]
    ticks = y.ticks()
    for value, label in zip(ticks, tick_labels(ticks, units[1]), strict=True):
        body.append(line(LEFT, y(value), RIGHT, y(value), "grid"))
        body.append(text(LEFT - 6, y(value) + 4, fit(label, LEFT - 6), "", "end"))
    body.append(line(LEFT, y.start, RIGHT, y.start, "axis"))
    ticks = x.ticks()
    for value, label in zip(ticks, tick_labels(ticks, units[0]), strict=True):
        half = text_width(label, SIZE) / 2
        at = min(max(x(value), half), WIDTH - half)
        body += [line(x(value), y.start, x(value), y.start + 4, "axis"), text(at, y.start + 18, label, "", "middle")]
    return [*body, text(RIGHT, y.start + 36, fit(titles[0], RIGHT - LEFT), "title", "end")]


def bars(stages: Sequence[Row], column: Column, ident: str) -> str:
    """Draw one bar per stage, with a tick where the plan had put it; empty where there is nothing to compare."""
    shown = [(row, value) for row in stages if (value := column.value(row)) is not None and value >= 0]
    if len(shown) < 2:
        return ""
    first, plans = shown[0][1], [column.predicted(row) for row, _ in shown]
    widest = max([value for _, value in shown] + [plan for plan in plans if plan is not None])
    scale = Axis(0.0, widest or 1.0, 2, WIDTH - 2)
    body, step = [text(2, 14, column.label, "title")], 34.0
    for index, ((row, value), plan) in enumerate(zip(shown, plans, strict=True)):
        top = 40 + index * step
        ratio = f"{times(value, first)}\N{EM SPACE}" if index else ""
        right = ratio + quantity(value, column.unit)
        body.append(text(2, top, fit(row.label, WIDTH - text_width(right, SIZE) - 16)))
        body.append(text(WIDTH - 2, top, right, "number", "end"))
        body.append(_bar(top + 6, WIDTH - 2, "track"))
        body.append(_bar(top + 6, scale(value), "bar" if index else "bar first"))
        if plan is not None and plan >= 0:
            body.append(line(scale(plan), top + 4, scale(plan), top + 16, "plan"))
    desc = "; ".join(f"{row.label}: {quantity(value, column.unit)}" for row, value in shown)
    return svg(ident, 40 + len(shown) * step - 12, f"{column.label} per stage", desc, body)


def _bar(top: float, right: float, style: str) -> str:
    return f'<rect x="2" y="{top:.1f}" width="{max(right - 2, 1):.1f}" height="8" rx="2" class="{style}"/>'


def curves(series: Sequence[Series], name: str, ident: str) -> str:
    """Draw curves over the steps of a training, each named with its last value in a legend above."""
    shown = [(label, style, points) for label, style, points in series if any(v is not None for _, v in points)]
    if not shown:
        return ""
    top = 34.0 + 17 * len(shown)
    x = axis([step for _, _, points in shown for step, _ in points], LEFT, RIGHT, zero=True, spread=float("inf"))
    y = axis([v for _, _, points in shown for _, v in points if v is not None], top + 150, top, spread=4.0)
    body, said = frame(x, y, units=("", ""), titles=("step", "")), []
    scale = ", logarithmic scale" if y.log else ""
    body[0] = text(2, 14, fit(name + scale, RIGHT), "title")
    for index, (label, style, points) in enumerate(shown):
        ends = [v for _, v in points if v is not None]
        values = f"{quantity(ends[0])} → {quantity(ends[-1])}" if len(ends) > 1 else quantity(ends[0])
        at = 34.0 + 17 * index
        room = RIGHT - 36 - text_width(values, SIZE)
        body += [line(2, at - 4, 24, at - 4, f"curve {style}"), text(30, at, fit(label, room))]
        body.append(text(RIGHT, at, values, "number", "end"))
        body.append(_path(points, x, y, style))
        said.append(f"{label}: {values}")
    return svg(ident, y.start + 44, f"{name} while training", "; ".join(said), body)


def _path(points: list[tuple[float, float | None]], x: Axis, y: Axis, style: str) -> str:
    """Draw a curve, broken where a value is missing; a lone point becomes a dot."""
    pen, path = "M", []
    for step, value in _thin(points):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "L"
    moves = " ".join(path) + (" h0.01" if len(path) == 1 else "")
    return f'<path d="{moves}" class="curve {style}"/>'


def _thin(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Keep the lowest and the highest point of every bucket, so that a spike stays a spike; and both ends."""
    if len(points) <= POINTS:
        return points
    size, thinned = -(-len(points) * 2 // POINTS), [points[0]]
    for start in range(0, len(points), size):
        bucket = [point for point in points[start : start + size] if point[1] is not None]
        ends = {id(end(bucket, key=lambda point: point[1] or 0.0)): None for end in (min, max)} if bucket else {}
        thinned += [point for point in bucket if id(point) in ends] or [points[start]]
    return [*thinned, points[-1]]
