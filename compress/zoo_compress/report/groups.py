"""A metric by group (digit, font, class): bars of the original and of the last stage, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from zoo.system.quantities import clean, finite, quantity
from zoo_compress.report.axes import Axis, axis, text_width, tick_labels
from zoo_compress.report.columns import Column, Row
from zoo_compress.report.plots import RIGHT, SIZE, fit, line, svg, text

MOST = 24  # groups drawn; of more, the lowest
WIDEST = 180.0  # room for the labels
THICK, STEP = 9.0, 12.0  # of one bar, and to the next of the same group


class Share(NamedTuple):
    """What one group reached."""

    value: float
    low: float | None
    high: float | None
    asked: float | None  # how many there were


def shares(column: Column, row: Row) -> dict[str, Share]:
    """Read a metric's groups; what is no number is left out."""
    entry = row.metrics.get(column.key)
    groups = entry.get("by") if isinstance(entry, Mapping) else None
    read: dict[str, Share] = {}
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        value, low, high, count = (
            finite(group.get(key)) if isinstance(group, Mapping) else None for key in ("value", "low", "high", "n")
        )
        if value is not None:
            whole = low is not None and high is not None and low <= value <= high
            read[clean(name)] = Share(value, low if whole else None, high if whole else None, count)
    return read


def by_group(stages: Sequence[Row], column: Column, ident: str) -> str:
    """Draw the bars of the first and the last stage that have groups; empty where there are none."""
    grouped = [(row, groups) for row in stages if (groups := shares(column, row))]
    shown = [grouped[0], *grouped[1:][-1:]] if grouped else []
    names = _names([groups for _, groups in shown])
    if not names:
        return ""
    counts = {name: _count(name, shown) for name in names}
    left = min(max(text_width(name + counts[name], SIZE) for name in names) + 10, WIDEST)
    right = RIGHT - 48
    scale = _scale(column, [share for _, groups in shown for share in groups.values()], left, right)
    body = [text(2, 14, fit(f"{column.label} by group", RIGHT), "title"), *_legend(shown)]
    top = 26.0 + 17 * len(shown)
    height = STEP * len(shown) + 9
    bottom = top + height * len(names)
    ticks = scale.ticks()
    for value, label in zip(ticks, tick_labels(ticks, column.unit), strict=True):
        body += [
            line(scale(value), top, scale(value), bottom, "grid"),
            text(scale(value), bottom + 16, label, "", "middle"),
        ]
    for index, name in enumerate(names):
        at = top + 4 + index * height
        label = fit(name, left - 8 - text_width(counts[name], SIZE)) + counts[name]
        body.append(text(left - 6, at + (height - 9) / 2 + 3, label, "", "end"))
        for position, (row, groups) in enumerate(shown):
            if name in groups:
                body.append(
                    _bar(groups[name], row, column, name, scale, at + position * STEP, last=position or len(shown) == 1)
                )
    said = "; ".join(
        f"{row.label}: " + ", ".join(f"{n} {quantity(groups[n].value, column.unit)}" for n in names if n in groups)
        for row, groups in shown
    )
    return svg(ident, bottom + 22, f"{column.label} by group", said, body)


def left_out(stages: Sequence[Row], column: Column) -> str:
    """Say in words which groups are not drawn, and what the numbers in brackets are."""
    by_stage = [groups for row in stages if (groups := shares(column, row))]
    count = len({name for groups in (*by_stage[:1], *by_stage[1:][-1:]) for name in groups})
    said = [f"The {MOST} lowest of {count} groups."] if count > MOST else []
    if any(share.asked is not None for groups in by_stage for share in groups.values()):
        said.append("In brackets: how many were counted. Thin lines are intervals.")
    return " ".join(said)


def _names(by_stage: Sequence[Mapping[str, Share]]) -> list[str]:
    """The groups to draw, in the order they came, the lowest alone where there are too many."""
    names = list(dict.fromkeys(name for groups in reversed(by_stage) for name in groups))
    if len(names) <= MOST:
        return names
    last = {name: next(groups[name].value for groups in reversed(by_stage) if name in groups) for name in names}
    lowest = set(sorted(names, key=last.__getitem__)[:MOST])
    return [name for name in names if name in lowest]


def _count(name: str, shown: Sequence[tuple[Row, Mapping[str, Share]]]) -> str:
    count = next((groups[name].asked for _, groups in reversed(shown) if name in groups), None)
    return f" ({quantity(count)})" if count is not None else ""


def _scale(column: Column, shares: Sequence[Share], left: float, right: float) -> Axis:
    if column.unit == "%":
        return Axis(0.0, 100.0, left, right)
    ends = [end for share in shares for end in (share.value, share.high, share.low) if end is not None]
    return axis(ends, left, right, zero=True, spread=float("inf"))


def _legend(shown: Sequence[tuple[Row, Mapping[str, Share]]]) -> list[str]:
    body = []
    for index, (row, _) in enumerate(shown):
        at = 32.0 + 17 * index
        style = "bar" if index or len(shown) == 1 else "bar first"
        body.append(f'<rect x="2" y="{at - 9:.1f}" width="22" height="8" rx="2" class="{style}"/>')
        body.append(text(30, at, fit(row.label, RIGHT - 30)))
    return body


def _bar(share: Share, row: Row, column: Column, name: str, scale: Axis, top: float, *, last: object) -> str:
    start, end = sorted((scale(0.0), scale(share.value)))
    value = quantity(round(share.value, 1) if column.unit == "%" else share.value, column.unit)
    tip = f"<title>{escape(f'{row.label}, {name}: {value}')}</title>"
    style = "bar" if last else "bar first"
    drawn = f'<g>{tip}<rect x="{start:.1f}" y="{top:.1f}" width="{max(end - start, 1):.1f}" height="{THICK:.0f}" rx="2" class="{style}"/>'
    if share.low is not None and share.high is not None:
        drawn += line(scale(share.low), top + THICK / 2, scale(share.high), top + THICK / 2, "whisker")
    return drawn + text(RIGHT, top + THICK - 0.5, value, "number small" if last else "small", "end") + "</g>"
