"""What every stage made of the same prompts: answers about one picture as a table, texts and pictures side by side."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from zoo.system.quantities import clean
from zoo_compress.report.columns import Data, Row, rows

# A picture travels inside the page or not at all; SVG is left out, since it can hold links.
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
OPEN = 6  # prompts shown before the rest is folded away
SMALL = 64  # pixels: a picture of at most this width is enlarged with its pixels left square

Group = list[tuple[Row, Data]]  # what the rows made of one prompt


def samples(results: Data) -> str:
    """Lay out the samples of all stages, the control and the baselines."""
    groups = _groups(results)
    asked = [group for group in groups if _is_question(group)]
    made = [group for group in groups if not _is_question(group)]
    return _answers(asked) + _cards(made)


def right(sample: Data) -> bool | None:
    """Whether the output is what was expected; None where nothing was, or there is no output."""
    if sample.get("expected") is None or sample.get("output") is None:
        return None
    return str(sample["output"]).strip() == str(sample["expected"]).strip()


def _groups(results: Data) -> list[Group]:
    """Samples of the same prompt at the same place belong together."""
    groups: dict[tuple[int, str], Group] = {}
    for row in rows(results):
        for index, sample in enumerate(row.data.get("samples") or []):
            groups.setdefault((index, _prompt(sample, index)), []).append((row, sample))
    return list(groups.values())


def _prompt(sample: Data, index: int = 0) -> str:
    return str(sample.get("prompt") or sample.get("caption") or f"sample {index + 1}")


def _is_question(group: Group) -> bool:
    """Whether a short answer is looked for: something was expected, or all rows were shown the same picture."""
    pictures = {str(sample.get("image") or "") for _, sample in group}
    same = (
        len(group) > 1
        and len(pictures) == 1
        and pictures != {""}
        and all(sample.get("output") is not None for _, sample in group)
    )
    return same or any(sample.get("expected") is not None for _, sample in group)


# --- answers ----------------------------------------------------------------------------------------------------------


def _answers(groups: Sequence[Group]) -> str:
    """A row a question, a column a stage."""
    if not groups:
        return ""
    columns = list(dict.fromkeys(row for group in groups for row, _ in group))
    heads = "".join(
        f'<th scope="col" class="{row.kind}">{_text(row.label)}<small>{_score(row, groups)}</small></th>'
        for row in columns
    )
    expected = any(sample.get("expected") is not None for group in groups for _, sample in group)
    body = "".join(_answer_row(group, columns, expected=expected) for group in groups)
    return (
        '<div class="scroll" role="region" aria-label="answers side by side" tabindex="0"><table class="answers">'
        f'<thead><tr><th scope="col">question</th>{"<th scope=col>expected</th>" if expected else ""}{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    ).replace("scope=col", 'scope="col"')


def _score(row: Row, groups: Sequence[Group]) -> str:
    verdicts = [
        verdict
        for group in groups
        for other, sample in group
        if other == row and (verdict := right(sample)) is not None
    ]
    return f"{sum(verdicts)} of {len(verdicts)} right" if verdicts else ""


def _answer_row(group: Group, columns: Sequence[Row], *, expected: bool) -> str:
    first = group[0][1]
    wanted = next((sample["expected"] for _, sample in group if sample.get("expected") is not None), "")
    given = dict(group)
    cells = "".join(_answer(given.get(row)) for row in columns)
    asked = f'<th scope="row"><div>{_picture(first, _prompt(first))}<span>{_text(_prompt(first))}</span></div></th>'
    return f"<tr>{asked}{f'<td>{_text(wanted)}</td>' if expected else ''}{cells}</tr>"


def _answer(sample: Data | None) -> str:
    if sample is None:
        return "<td>–</td>"
    verdict, note = right(sample), sample.get("note")
    sign = "" if verdict is None else '<b aria-hidden="true">✓</b> ' if verdict else '<b aria-hidden="true">✗</b> '
    spoken = "" if verdict is None else f'<span class="spoken"> ({"right" if verdict else "wrong"})</span>'
    kind = "" if verdict is None else ' class="right"' if verdict else ' class="wrong"'
    below = f"<small>{_text(note)}</small>" if note else ""
    return f"<td{kind}>{sign}{_text(sample.get('output', '–'))}{spoken}{below}</td>"


# --- texts and pictures that were made --------------------------------------------------------------------------------


def _cards(groups: Sequence[Group]) -> str:
    """A heading a prompt, a card a stage."""
    frame = '<div class="samples" role="region" aria-label="outputs side by side" tabindex="0">'
    parts = []
    for group in groups:
        pictured = " pictured" if any(sample.get("image") for _, sample in group) else ""
        cards = "".join(_card(row, sample) for row, sample in group)
        parts.append(
            f'<h3 class="prompt">{_text(_prompt(group[0][1]))}</h3>{frame.replace("samples", f"samples{pictured}", 1)}{cards}</div>'
        )
    rest = "".join(parts[OPEN:])
    more = f"<details><summary>{len(parts) - OPEN} more</summary>{rest}</details>" if rest else ""
    return "".join(parts[:OPEN]) + more


def _card(row: Row, sample: Data) -> str:
    output = sample.get("output")
    body = f"<pre>{_text(output)}</pre>" if output is not None else ""
    picture = _picture(sample, sample.get("caption") or sample.get("prompt") or row.label)
    return f'<div class="card {row.kind}"><h4>{_text(row.label)}</h4>{picture}{body}</div>'


def _picture(sample: Data, alt: object) -> str:
    picture = sample.get("image")
    if isinstance(picture, str) and PICTURE.fullmatch(picture):
        square = ' class="square"' if 0 < _width(picture) <= SMALL else ""
        return f'<img{square} src="{picture}" alt="{_text(alt)}">'
    return (
        '<p class="hint">A picture is shown only when it is a PNG, JPEG, GIF or WebP data URI.</p>' if picture else ""
    )


def _width(picture: str) -> int:
    """The width of a PNG, from its header; 0 of anything else."""
    head = base64.b64decode(picture.partition(",")[2][:32] + "==")[:24] if picture.startswith("data:image/png") else b""
    return int.from_bytes(head[16:20], "big") if head[12:16] == b"IHDR" and len(head) >= 20 else 0


def _text(value: object) -> str:
    return escape(clean(value))
