"""The report in words, computed from its numbers."""

from __future__ import annotations

from zoo.system.quantities import clean, finite, measured, percent, quantity, seconds
from zoo_compress.report.columns import (
    DISK,
    PARAMETERS,
    Column,
    Data,
    Row,
    columns,
    compared,
    quality,
    related,
    rows,
    stages,
)


def name(results: Data) -> str:
    """Return what to call this run: the recipe's name, else the model's."""
    recipe, model = results.get("recipe") or {}, results.get("model") or {}
    return clean(recipe.get("name") or recipe.get("file") or model.get("name") or "Compression")


def summary(results: Data) -> str:
    """Say in one paragraph what was done, what it saved and what it cost."""
    table = stages(results)
    if not table:
        return "No stage was finished."
    first, last = table[0], table[-1]
    if len(table) == 1:
        return " ".join([_alone(results, first), *_against(results, first), *_overlaps(results)])
    lines = [_sizes(results, first, last)]
    lines += [line for column in quality(results)[:3] if (line := _quality(column, first, last))]
    lines += [line for line in [_costs(results, first, last)] if line]
    return " ".join([*lines, *_against(results, last), *_overlaps(results)])


def _overlaps(results: Data) -> list[str]:
    """Say which records were in several roles, as the plan said it."""
    return [clean(overlap.get("said", "")) for overlap in results.get("overlaps") or []]


def _alone(results: Data, row: Row) -> str:
    facts = [f"{quantity(PARAMETERS.value(row))} parameters", f"{quantity(DISK.value(row), 'bytes')} on disk"]
    facts += [f"{column.label} {quantity(column.value(row), column.unit)}" for column in quality(results)[:3]]
    return f"{_model(results)} as it came, nothing compressed: {', '.join(facts)}."


def _model(results: Data) -> str:
    return clean((results.get("model") or {}).get("name") or "The model")


def _sizes(results: Data, first: Row, last: Row) -> str:
    count = len(stages(results)) - 1
    work = f"{count} stage{'s' if count > 1 else ''}"
    if (duration := finite(results.get("seconds"))) is not None:
        work += f" and {seconds(duration)}"
    sizes = [_shrunk(DISK, first, last, "smaller on disk", "larger on disk", "the same size on disk")]
    sizes.append(_shrunk(PARAMETERS, first, last, "fewer parameters", "more parameters", "as many parameters"))
    said = [size for size in sizes if size]
    if not said:
        return f"{_model(results)} went through {work}."
    return f"After {work}, {_model(results)} is {' and has '.join(said)}."


def _shrunk(column: Column, first: Row, last: Row, less: str, more: str, same: str) -> str:
    before, after = column.value(first), column.value(last)
    change = percent(after, before)
    if not change:
        return ""
    if change.startswith("±"):
        return f"{same} ({quantity(after, column.unit)})"
    word = more if change.startswith("+") else less
    return f"{change[1:]} {word} ({quantity(before, column.unit)} → {quantity(after, column.unit)})"


def _quality(column: Column, first: Row, last: Row) -> str:
    (before, low_0, high_0), (after, low_1, high_1) = column.interval(first), column.interval(last)
    if before is None or after is None:
        return ""
    texts = [measured(*column.interval(row), column.unit)[0] for row in (first, last)]
    notes = [column.change(after, before), column.hint]
    if low_0 is not None and high_0 is not None and low_1 is not None and high_1 is not None:
        notes.append("the intervals overlap" if low_1 <= high_0 and low_0 <= high_1 else "the intervals do not overlap")
    said = "; ".join(note for note in notes if note)
    return f"{_capital(column.label)} went from {texts[0]} to {texts[1]}" + (f" ({said})." if said else ".")


def _costs(results: Data, first: Row, last: Row) -> str:
    """Say how speed and memory changed, measures nobody can compare left out."""
    costs = [column for column in columns(results) if column.metric and column.cost]
    ratios = [(column.label, *related(column, last, first)) for column in costs]
    said = [f"{label} {ratio}" + (f" ({spread})" if spread else "") for label, ratio, spread in ratios if ratio]
    return f"Against the original: {', '.join(said)}." if said else ""


def _against(results: Data, last: Row) -> list[str]:
    """Compare with the control and the baselines, in the first quality metric."""
    if not (measures := quality(results)):
        return []
    column, said = measures[0], []
    table = [row for row in rows(results) if column.value(row) is not None]
    reached = {row: measured(*column.interval(row), column.unit)[0] for row in table}
    control = next((row for row in table if row.kind == "control"), None)
    rival = compared(results) or last
    if control and rival in reached:
        said.append(
            f"Trained from random weights instead, the same architecture reaches {reached[control]}, "
            f"where {rival.label} reaches {reached[rival]}."
        )
    marks = [f"{row.label} at {reached[row]}" for row in table if row.kind == "baseline"]
    return [*said, f"For scale, in {column.label}: {', '.join(marks)}."] if marks else said


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
