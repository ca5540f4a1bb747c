"""The report as one page of HTML that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from zoo.system.quantities import clean, finite, quantity, seconds
from zoo_compress.report.columns import (
    DISK,
    PARAMETERS,
    Cell,
    Column,
    Data,
    Row,
    cell,
    columns,
    compared,
    quality,
    rows,
    spell,
    stages,
)
from zoo_compress.report.confusion import heat, matrix, mistakes
from zoo_compress.report.groups import by_group, left_out
from zoo_compress.report.layers import layer_table
from zoo_compress.report.plots import Series, bars, curves
from zoo_compress.report.samples import samples
from zoo_compress.report.scatter import MANY, off_the_chart, scatter
from zoo_compress.report.summary import name, summary


def html(results: Data) -> str:
    """Return report.html for the content of results.json."""
    return _template().substitute(
        title=_text(name(results)),
        byline=_byline(results),
        summary=_unbroken(_text(summary(results))),
        figures=_figures(results),
        table=_table(results),
        groups=_section("Where it is right", _groups(results)),
        samples=_section("Samples", samples(results)),
        training=_section("Training", _training(results)),
        layers=_section("Layers", _layers(results)),
        options=_section("Options", _options(results)),
        made=_section("How it was made", _made(results)),
        machine=_section("Machine and versions", _machine(results)),
    )


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("template.html").read_text("utf-8"))


def _text(value: object) -> str:
    return escape(clean(value))


def _unbroken(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=[%kMGTB]|min\b|s\b|h\b)| (?=→)", "\N{NO-BREAK SPACE}", text)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _byline(results: Data) -> str:
    model, recipe = results.get("model") or {}, results.get("recipe") or {}
    facts = [model.get("name"), model.get("family"), model.get("modality"), model.get("license")]
    facts += [recipe.get("file"), str(results.get("started") or "")[:16].replace("T", " ")]
    return " <i>·</i> ".join(f"<span>{_text(fact)}</span>" for fact in facts if fact)


def _figures(results: Data) -> str:
    left = []
    for index, column in enumerate(quality(results)[:4]):
        if drawing := scatter(results, column, f"scatter-{index}"):
            notes = ["Numbers are those of the table below."] if len(stages(results)) > MANY else []
            notes += [off_the_chart(results, column)]
            left.append(_figure(drawing, " ".join(note for note in notes if note)))
    planned = any(row.data.get("predicted") for row in stages(results))
    drawings = [bars(stages(results), column, f"bars-{column.key}") for column in (DISK, PARAMETERS)]
    notes = ["", "The upright tick is what the plan said before any work was done." if planned else ""]
    right = [_figure(drawing, note) for drawing, note in zip(drawings, notes, strict=True) if drawing]
    sides = "".join(f"<div>{''.join(side)}</div>" for side in (left, right) if side)
    return f'<div class="figures">{sides}</div>' if sides else ""


def _figure(drawing: str, caption: str = "") -> str:
    return f"<figure>{drawing}{f'<figcaption>{_text(caption)}</figcaption>' if caption else ''}</figure>"


def _table(results: Data) -> str:
    """Lay out stages, control and baselines as rows; the first column stays in sight when the rest scrolls."""
    lines, shown = rows(results), columns(results)
    if not lines:
        return ""
    original = next(iter(stages(results)), None)
    heads = [f'<th scope="col">{_text(c.label)}<small>{_text(_subtitle(c))}</small></th>' for c in shown]
    body = []
    for row in lines:
        cells = [_cell(cell(column, row, original)) for column in shown]
        body.append(f'<tr class="{row.kind}"><th scope="row">{_row_name(row)}</th>{"".join(cells)}</tr>')
    return _framed("After each stage", _legend(results), "".join(heads), "".join(body))


def _row_name(row: Row) -> str:
    number = f"<b>{row.number}</b>&nbsp;" if row.kind == "stage" else ""
    kind = f"<small>{row.kind}</small>" if row.kind not in {"stage", row.label} else ""
    note = f"<small>{_text(row.data['note'])}</small>" if row.data.get("note") else ""
    return f"{number}{_text(row.label)}{kind}{note}"


def _framed(caption: str, legend: str, heads: str, body: str) -> str:
    return (
        f'<section><div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>'
        f'<caption><h2>{caption}</h2><p class="hint">{legend}</p></caption>'
        f'<thead><tr><th scope="col">stage</th>{heads}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _subtitle(column: Column) -> str:
    """Return the unit, and which way is better where that does not go without saying."""
    return ", ".join(part for part in (column.shown_unit, "" if column.cost else column.hint) if part)


def _legend(results: Data) -> str:
    said = ["× and % relate a value to the original."]
    if any(column.interval(row)[1] is not None for column in columns(results) for row in rows(results)):
        said.append("± is half the width of the interval, which takes two samples.")
    if any(
        "rounds" in metric for row in rows(results) for metric in row.metrics.values() if isinstance(metric, Mapping)
    ):
        said.append(
            "Speeds are medians of rounds in which the models take turns; their intervals, and those of × to the original, are the range of the rounds."
        )
    if any(row.data.get("predicted") for row in rows(results)):
        said.append("“Plan” is what was predicted before any work was done.")
    return " ".join(said)


def _cell(made: Cell) -> str:
    spread = f' <span class="spread">{_text(made.spread)}</span>' if made.spread else ""
    relative = f"{made.relative} {made.relative_spread}".strip()
    below = "".join(f"<small>{_text(part)}</small>" for part in (relative, made.count, made.plan) if part)
    return f"<td>{_text(made.main)}{spread}{below}</td>"


def _training(results: Data) -> str:
    """Draw the curves of every stage that trained, the control's laid over those of the stage it matches."""
    parts, control, rival = [], results.get("control") or {}, compared(results)
    for number, row in enumerate(stages(results)):
        drawings = []
        for index, (key, points) in enumerate((row.data.get("curves") or {}).items()):
            series: list[Series] = [(row.label, "last", _points(points))]
            if row == rival and (other := (control.get("curves") or {}).get(key)):
                series.append((clean(control.get("label") or "control"), "control", _points(other)))
            drawings.append(curves(series, spell(clean(key).split()), f"curve-{number}-{index}"))
        if drawn := "".join(_figure(drawing) for drawing in drawings if drawing):
            parts.append(f'<h3>{number} {_text(row.label)}</h3><div class="curves">{drawn}</div>')
    return "".join(parts)


def _points(points: Sequence[Sequence[object]]) -> list[tuple[float, float | None]]:
    return [(step, finite(value)) for at, value in points if (step := finite(at)) is not None]


def _groups(results: Data) -> str:
    """Show where the model is right and wrong: bars by group, and what was taken for what before and after."""
    groups, tables = [], []
    for index, column in enumerate(quality(results)):
        if drawing := by_group(stages(results), column, f"groups-{index}"):
            groups.append(_figure(drawing, left_out(stages(results), column)))
        matrices = [(row, made) for row in stages(results) if (made := matrix(column, row))]
        shown = [*matrices[:1], *matrices[1:][-1:]]
        for position, (row, made) in enumerate(shown):
            worst = ", ".join(mistakes(made))
            caption = (
                f"Rows: what was right; columns: what was answered. Most mistaken: {worst}."
                if worst
                else "No mistakes."
            )
            tables.append(
                _figure(
                    heat(
                        made,
                        f"{column.label}: {row.label}",
                        f"confusion-{index}-{position}",
                        beside=[other for _, other in shown],
                    ),
                    caption,
                )
            )
    return "".join(f'<div class="parts">{"".join(drawings)}</div>' for drawings in (tables, groups) if drawings)


def _layers(results: Data) -> str:
    drawn = "".join(layer_table(number, row) for number, row in enumerate(stages(results)))
    note = "Errors are those of a layer's outputs on the calibration data, as a share of the outputs."
    return f'<p class="hint">{note}</p>{drawn}' if drawn else ""


def _options(results: Data) -> str:
    parts = []
    for number, row in enumerate(stages(results)):
        if options := row.data.get("options"):
            use = _text(row.data.get("use") or row.label)
            parts.append(f"<details><summary>{number} <code>{use}</code></summary>{_facts(options)}</details>")
    return "".join(parts)


def _made(results: Data) -> str:
    """Name the model, the data and the command, and quote the recipe."""
    recipe, data = results.get("recipe") or {}, results.get("data") or {}
    facts = {"model": (results.get("model") or {}).get("reference"), "command": results.get("command") or None}
    for role, known in data.items() if isinstance(data, Mapping) else ():
        if isinstance(known, Mapping):
            records, sha256 = finite(known.get("records")), clean(known.get("sha256") or "")[:12]
            count = f", {int(records):,} records" if records is not None else ""
            facts[f"{role} data"] = f"{known.get('reference')}{count}" + (f", sha256 {sha256}" if sha256 else "")
    facts["overridden"] = ", ".join(map(str, recipe.get("overrides") or ())) or None
    name = _text(recipe.get("file") or "recipe")
    text = recipe.get("text")
    quoted = f"<details><summary><code>{name}</code></summary><pre>{_text(text)}</pre></details>" if text else ""
    return _facts(facts) + quoted


def _machine(results: Data) -> str:
    recipe, duration = results.get("recipe") or {}, finite(results.get("seconds"))
    facts = {"zoo": results.get("zoo"), **(results.get("machine") or {}), "seed": recipe.get("seed")}
    if (memory := finite(facts.pop("memory_bytes", None))) is not None:
        facts["memory"] = quantity(memory, "bytes")
    facts["kernels"] = _kernels(results)
    facts |= {"started": results.get("started"), "took": None if duration is None else seconds(duration)}
    sessions = finite(results.get("sessions")) or 1
    return _facts({**facts, "sessions": int(sessions) if sessions > 1 else None})


def _kernels(results: Data) -> str | None:
    """What the packed layers of the last stage run in on this machine."""
    kernels = stages(results)[-1].data.get("kernels") if stages(results) else None
    if not isinstance(kernels, Mapping):
        return None
    return "; ".join(f"{kernel} ({layers} layers)" for kernel, layers in kernels.items()) or None


def _facts(facts: Mapping[str, Any]) -> str:
    """List names and values; what is not a plain value is shown as JSON."""
    known = {key: value for key, value in facts.items() if value is not None}
    lines = [f"<dt>{_text(key)}</dt><dd>{_text(_plain(value))}</dd>" for key, value in known.items()]
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
