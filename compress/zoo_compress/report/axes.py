"""Scales from values to pixels, their ticks, and labels that keep out of each other's way."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zoo.system.quantities import is_bytes, power, quantity, strip_zeros

Box = tuple[float, float, float, float]  # left, top, right, bottom
GAP = 8.0


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale: `low` lies at pixel `start`, `high` at pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values inside the scale, about as many as wanted."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            inside = [value for value in fine if self.low <= value <= self.high]
            return inside if len(inside) <= wanted + 2 else inside[:: math.ceil(len(inside) / wanted)]
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / wanted))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= wanted + 0.5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def axis(values: Iterable[float], start: float, end: float, *, zero: bool = False, spread: float = 20.0) -> Axis:
    """Fit a scale round `values`, from zero if asked; logarithmic where they span more than `spread` times."""
    numbers = list(values) or [0.0]
    low, high = min(numbers), max(numbers)
    if low > 0 and high / low > spread:
        return Axis(low / 1.15, high * 1.15, start, end, log=True)
    if zero and low >= 0:
        return Axis(0.0, high * 1.06 or 1.0, start, end)
    pad = (high - low) * 0.08
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        pad = abs(high) * 0.05 or 0.5
    return Axis(low - pad, high + pad, start, end)


def tick_labels(values: Sequence[float], unit: str = "") -> list[str]:
    """Write ticks with one common number of decimals where they share a prefix."""
    steps = [b - a for a, b in pairwise(values)]
    even = bool(steps) and max(steps) < 1.5 * min(steps)
    decimals = max(0, math.ceil(-math.log10(steps[0]) - 1e-9)) if even else 0
    if max(map(abs, values), default=0.0) < 1e-3 or decimals > 4:
        return [power(value) for value in values]
    if not even or unit == "s" or is_bytes(unit) or max(map(abs, values)) >= 1e4:
        return ["0" if value == 0 else strip_zeros(quantity(value, unit)) for value in values]
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def text_width(text: str, size: float) -> float:
    """Estimate the width of `text` in pixels, rather too wide than too narrow."""
    return size * sum(1.05 if unicodedata.east_asian_width(sign) in "WF" else 0.6 for sign in text)


def overlap(a: Box, b: Box) -> bool:
    """Say whether two boxes share any area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def label_boxes(
    anchors: Sequence[tuple[float, float, float]], height: float, taken: Sequence[Box], bounds: Box
) -> list[Box | None]:
    """Find a box for a label at each anchor (x, y, label width): beside it, else the nearest free spot, else none."""
    taken, placed = list(taken), []
    for x, y, width in anchors:
        free = (box for box in _spots(x, y, width, height, bounds) if not any(overlap(box, other) for other in taken))
        box = next(free, None)
        placed.append(box)
        if box:
            taken.append(box)
    return placed


def _spots(x: float, y: float, width: float, height: float, bounds: Box) -> Iterable[Box]:
    """Yield boxes inside `bounds` to try for a label at (x, y), the best first."""
    right, centred, left_of = x + GAP, x - width / 2, x - GAP - width
    above, level, below = y - height - 3, y - height / 2, y + 3
    corners = [(right, level), (right, above), (right, below), (centred, y - height - GAP), (centred, y + GAP)]
    corners += [(left_of, above), (left_of, below), (left_of, level)]
    lefts = range(int(bounds[0]) + 1, int(bounds[2] - width), 12)
    tops = range(int(bounds[1]) + 1, int(bounds[3] - height), 8)
    grid = [(float(left), float(top)) for left in lefts for top in tops]
    grid.sort(key=lambda spot: math.hypot(spot[0] + width / 2 - x, 2 * (spot[1] + height / 2 - y)))
    for left, top in (*corners, *grid):
        box = (left, top, left + width, top + height)
        if box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]:
            yield box
