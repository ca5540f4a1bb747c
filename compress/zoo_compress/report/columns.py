"""Which rows and columns the report has, and what stands in a cell. A metric's name, or its unit, is enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from zoo.system.quantities import clean, counted, finite, is_bytes, measured, percent, points, quantity, times

Data = Mapping[str, Any]
Kind = Literal["stage", "control", "baseline"]
ABBREVIATIONS = {"rss": "RSS", "kl": "KL", "fid": "FID", "clip": "CLIP", "bleu": "BLEU", "vram": "VRAM", "id": "ID"}
# Which way is better, for metrics that come without "better" and whose unit does not tell.
BETTER = dict.fromkeys(("bits_per_byte", "perplexity", "loss", "kl", "fid"), "lower") | {"accuracy": "higher"}


@dataclass(frozen=True)
class Row:
    """One line of the table: a stage, the control, or a baseline."""

    kind: Kind
    number: int  # among its kind; the original is stage 0
    label: str
    data: Data = field(compare=False)

    @property
    def metrics(self) -> Data:
        return self.data.get("metrics") or {}


@dataclass(frozen=True)
class Column:
    """One thing that was measured: a field of the stage itself, or one of its metrics."""

    key: str
    label: str
    unit: str = ""
    better: str = ""
    metric: bool = True

    @property
    def cost(self) -> bool:
        """Say whether this is time, memory or speed, which is read as a multiple of the original's."""
        return is_bytes(self.unit) or self.unit in {"s", "ms"} or self.unit.endswith("/s") or not self.metric

    @property
    def shown_unit(self) -> str:
        """Return the unit a heading has to name, as the values below do not carry it."""
        return "" if is_bytes(self.unit) or self.unit in {"s", "%"} else self.unit

    @property
    def hint(self) -> str:
        return f"{self.better} is better" if self.better else ""

    def change(self, value: float | None, base: float | None) -> str:
        """Relate a value to the original's: costs as a multiple, percentages in points, the rest in percent."""
        return (times if self.cost else points if self.unit == "%" else percent)(value, base)

    def value(self, row: Row) -> float | None:
        return self.interval(row)[0]

    def interval(self, row: Row) -> tuple[float | None, float | None, float | None]:
        """Return value, low and high; low and high only when both are there."""
        if not self.metric:
            return finite(row.data.get(self.key)), None, None
        entry = row.metrics.get(self.key)
        entry = entry if isinstance(entry, Mapping) else {"value": entry}
        value, low, high = (finite(entry.get(key)) for key in ("value", "low", "high"))
        if value is None or low is None or high is None or low > high:
            return value, None, None
        return value, low, high

    def ratio(self, row: Row, original: Row) -> tuple[float | None, float | None, float | None]:
        """Return the median of value / original over rounds in which both were measured one after the other, and its range."""
        mine, theirs = self._rounds(row), self._rounds(original)
        if not 1 < len(mine) == len(theirs) or min(*mine, *theirs) <= 0:
            return None, None, None
        ratios = [own / base for own, base in zip(mine, theirs, strict=True)]
        return median(ratios), min(ratios), max(ratios)

    def _rounds(self, row: Row) -> list[float]:
        entry = row.metrics.get(self.key)
        kept = entry.get("rounds") if isinstance(entry, Mapping) else None
        values = [finite(value) for value in kept] if isinstance(kept, list) else []
        return [value for value in values if value is not None]

    def count(self, row: Row) -> str:
        """Say of how many samples a metric is: "n = 40 windows"."""
        entry = row.metrics.get(self.key) if self.metric else None
        number = finite(entry.get("n")) if isinstance(entry, Mapping) else None
        return (
            ""
            if number is None or not isinstance(entry, Mapping)
            else f"n = {counted(int(number), clean(entry.get('of') or ''))}"
        )

    def predicted(self, row: Row) -> float | None:
        return None if self.metric else finite((row.data.get("predicted") or {}).get(self.key))


@dataclass(frozen=True)
class Cell:
    """A cell's texts: the value, its interval, of how many samples, its relation to the original, and what the plan had said."""

    main: str
    spread: str = ""
    count: str = ""
    relative: str = ""
    relative_spread: str = ""
    plan: str = ""


PARAMETERS = Column("params", "parameters", better="lower", metric=False)
DISK = Column("bytes", "on disk", unit="bytes", better="lower", metric=False)
PEAK = Column("peak_bytes", "peak while compressing", unit="bytes", better="lower", metric=False)
TIME = Column("seconds", "time taken", unit="s", better="lower", metric=False)


def rows(results: Data) -> list[Row]:
    """Return the stages in order, then the control, then the baselines."""
    table = [_row("stage", number, data) for number, data in enumerate(results.get("stages") or [])]
    if results.get("control"):
        table.append(_row("control", 0, results["control"]))
    return table + [_row("baseline", number, data) for number, data in enumerate(results.get("baselines") or [])]


def stages(results: Data) -> list[Row]:
    """Return the stage rows alone; the first is the original."""
    return [row for row in rows(results) if row.kind == "stage"]


def columns(results: Data) -> list[Column]:
    """Return the columns that hold anything: sizes, quality, speed and memory, then the making itself."""
    table = rows(results)
    entries: dict[str, Data] = {}
    for row in table:
        for key, entry in row.metrics.items():
            known = entries.setdefault(str(key), {})
            entries[str(key)] = {**(entry if isinstance(entry, Mapping) else {}), **known}
    metrics = sorted((_metric(key, entry) for key, entry in entries.items()), key=lambda column: column.cost)
    return [c for c in (PARAMETERS, DISK, *metrics, PEAK, TIME) if any(c.value(row) is not None for row in table)]


def quality(results: Data) -> list[Column]:
    """Return the columns that say how good the model is, as opposed to how big or fast."""
    return [column for column in columns(results) if not column.cost]


def compared(results: Data) -> Row | None:
    """Return the stage the control is to be compared with: the one it names, else the last."""
    table = stages(results)
    index = (results.get("control") or {}).get("compares_to")
    if isinstance(index, int) and 0 <= index < len(table):
        return table[index]
    return table[-1] if table else None


def cell(column: Column, row: Row, original: Row | None) -> Cell:
    """Write what `column` says of `row`, next to the original."""
    value, low, high = column.interval(row)
    main, spread = measured(value, low, high, column.unit)
    other = original if original and original != row and column not in (PEAK, TIME) else None
    relative, around = related(column, row, other) if other else ("", "")
    plan = _plan(value, column.predicted(row), column.unit)
    return Cell(main, spread, column.count(row), relative, around, plan)


def related(column: Column, row: Row, original: Row) -> tuple[str, str]:
    """Relate a row to the original, with an interval where the two were measured in turn: ("×1.78", "±0.05")."""
    ratio, low, high = column.ratio(row, original)
    if ratio is None:
        return column.change(column.value(row), column.value(original)), ""
    main, spread = measured(ratio, low, high)
    return f"×{main}" if spread else times(ratio, 1.0), spread


def _plan(value: float | None, predicted: float | None, unit: str) -> str:
    if predicted is None:
        return ""
    off = percent(value, predicted)
    if value == predicted or off.startswith("±"):
        return "as planned"
    return f"plan {quantity(predicted, unit)}" + (f" ({off})" if off else "")


def _row(kind: Kind, number: int, data: Data) -> Row:
    label = clean(data.get("label") or data.get("use") or "").strip()
    return Row(kind, number, label or kind, data)


def spell(words: Iterable[str]) -> str:
    """Join words, abbreviations in capitals."""
    return " ".join(ABBREVIATIONS.get(word, word) for word in words)


def _metric(key: str, entry: Data) -> Column:
    """Name a metric from its key: ``decode_tokens_per_s`` is decode in tokens/s, ``peak_rss_bytes`` is in bytes."""
    words, unit = clean(key).split("_"), clean(entry.get("unit") or "")
    if words[-2:] == ["per", "s"] and len(words) > 2:
        words, unit = words[:-3], unit or f"{words[-3]}/s"
    elif words[-1] in {"bytes", "s"} and len(words) > 1:
        words, unit = words[:-1], unit or words[-1]
    better = clean(entry.get("better") or BETTER.get(key) or "")
    column = Column(key, spell(words) or "speed", unit, better)
    if not better and column.cost:
        return Column(key, column.label, unit, "higher" if unit.endswith("/s") else "lower")
    return column
