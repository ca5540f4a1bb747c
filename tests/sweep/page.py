"""docs/sweep.md: what works, is refused or fails, architecture by architecture.

    python tests/sweep/page.py sweep-transformers.jsonl sweep-timm.jsonl > page.md && mv page.md docs/sweep.md

The page is what it is made of: files of results replace the rows of the architectures in them, all others stay. Without
files it is written again as it is, which is what the test compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from findings import COUNTED, DOES_NOT_APPLY, DTYPES, FAILED, NOT_BUILT, REFUSED, WORKS

PAGE = Path(__file__).parents[2] / "docs" / "sweep.md"
PARTS = ("transformers", "timm", "diffusers")
MODEL_COLUMNS = ("load", "inspect", "reload", "logits", "rows", "length", "cached", "all", "layers")
STAGE_COLUMNS = (
    "inherit",
    "prune.magnitude",
    "prune.wanda",
    "prune.sparsegpt",
    "prune.structured",
    "quantize.int4",
    "quantize.int8",
    "quantize.nf4",
    "share.ffn",
    "lowrank.svd",
    "distill",
    "train",
    "vocabulary.bpe",
)
COLUMNS = (*MODEL_COLUMNS, *STAGE_COLUMNS, "process")
MARKS = {WORKS: "✓", DOES_NOT_APPLY: "–", REFUSED: "r", FAILED: "✗"}
VERDICTS = {mark: verdict for verdict, mark in MARKS.items()}
HEAD = """\
# What was swept

Written by `tests/sweep/page.py` from what `tests/sweep/sweep.py` found; a test keeps it in step. Every architecture was
built at test size by its own library with random weights, saved as that library saves, and given to zoo.

| mark | meaning |
| --- | --- |
| ✓ | works; a stage: planned, applied, saved, and loaded by another process with the same bits, in float32 and bfloat16 |
| r1 | refused in the sentence of that number below, before any work |
| ✗1 | fails: the sentence of that number below says how |
| ✓/✗1 | in float32 / in bfloat16 |
| – | the question does not arise |

`load`, `inspect`: `zoo.load` and `zoo inspect`. `reload`: saved as loaded, and back. `logits`: equal to those of the library.
`rows`: what losses compare are the model's own logits. `length`: it reads as many tokens as it is said to take. `cached`: text
with a cache is that without. `all`: every layer is in the target "all", or it is said how many are not. `layers`: how many linear
layers (of images also convolutions) and tables of experts that target takes in, of how many there are. `process`: it crashed or
took too long. The rest are stages; where one has no mark, the model does not load, or a sweep since there is this stage has not
asked.
"""

Cell = tuple[tuple[str, str], ...]  # (verdict, sentence), one of both precisions or one of each


@dataclass
class Page:
    """The rows of the page, by part and architecture."""

    versions: dict[str, str] = field(default_factory=dict)  # part -> the libraries and their versions
    rows: dict[str, dict[str, tuple[str, dict[str, Cell]]]] = field(default_factory=dict)  # name -> class, cells
    absent: dict[str, dict[str, str]] = field(default_factory=dict)  # what is not built, and why

    def take(self, line: Mapping[str, Any]) -> None:
        """Replace the row of an architecture by what a sweep found; stages that it did not ask stay."""
        part, name, kind = line["part"], line["name"], line["kind"]
        self.versions[part] = ", ".join(f"{library} {line['versions'][library]}" for library in ("torch", part))
        rows, absent = self.rows.setdefault(part, {}), self.absent.setdefault(part, {})
        _, former = rows.pop(name, ("", {}))
        absent.pop(name, None)
        findings = [
            finding for finding in line["findings"] if finding["check"] != "build" or finding["verdict"] != WORKS
        ]
        if findings and findings[0]["verdict"] == NOT_BUILT:
            absent[name] = _one_line(findings[0]["sentence"])
        else:
            cells = {column: _cell(findings, column, kind) for column in COLUMNS}
            if not cells["process"] and all(verdict == WORKS for verdict, _ in cells["load"]):
                cells |= {stage: former.get(stage, ()) for stage in STAGE_COLUMNS if not cells[stage]}
            rows[name] = kind, cells

    def text(self) -> str:
        """The page."""
        sentences: dict[str, list[str]] = {REFUSED: [], FAILED: []}
        lines = [HEAD]
        for part in PARTS:
            if part in self.versions:
                lines += [f"## {part}", "", f"With {self.versions[part]}.", "", *self._table(part, sentences), ""]
                lines += self._absent(part)
        for verdict, title in ((FAILED, "How it fails"), (REFUSED, "Why it is refused")):
            lines += [f"## {title}", ""]
            lines += [f"- {MARKS[verdict]}{number}: {text}" for number, text in enumerate(sentences[verdict], 1)]
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"

    def _table(self, part: str, sentences: dict[str, list[str]]) -> Iterator[str]:
        counts = [
            re.findall(r"\d+", sentence) for _, cells in self.rows[part].values() for _, sentence in cells["layers"]
        ]
        if counts:
            whole = sum(count == of for count, of in counts)
            there, found = (sum(int(count[i]) for count in counts) for i in (1, 0))
            yield f"Layers reached: {found:,} of {there:,}; all of them in {whole} of {len(counts)} architectures."
            yield ""
        yield _line(["architecture", "class", *COLUMNS])
        yield _line(["---", "---", *[":-:"] * len(COLUMNS)])
        for name, (kind, cells) in sorted(self.rows[part].items()):
            yield _line(
                [name, kind, *("/".join(_mark(*one, sentences) for one in cells[column]) for column in COLUMNS)]
            )

    def _absent(self, part: str) -> Iterator[str]:
        if self.absent[part]:
            yield from ("Not built at test size by the library itself:", "")
            yield from (f"- {name}: {why}" for name, why in sorted(self.absent[part].items()))
            yield ""


def read(text: str) -> Page:
    """The page that a text is of."""
    page, part, columns = Page(), "", list[str]()
    known = dict(re.findall(r"^- ([r✗]\d+): (.*)$", text, flags=re.MULTILINE))
    for line in text.splitlines():
        if match := re.fullmatch(r"## (.*)", line):
            part = match[1]
        if part not in PARTS:
            continue
        rows, absent = page.rows.setdefault(part, {}), page.absent.setdefault(part, {})
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if match := re.fullmatch(r"With (.*)\.", line):
            page.versions[part] = match[1]
        elif line.startswith("- "):
            name, _, why = line[2:].partition(": ")
            absent[name] = why
        elif cells and cells[0] == "architecture":
            columns = cells[2:]
        elif cells and cells[0] != "---":
            marks = (tuple(_verdict(mark, known) for mark in cell.split("/") if mark) for cell in cells[2:])
            rows[cells[0]] = cells[1], dict.fromkeys(COLUMNS, ()) | dict(zip(columns, marks, strict=True))
    return page


def _cell(findings: Iterable[Mapping[str, str]], column: str, kind: str) -> Cell:
    by_dtype = {
        finding["dtype"]: (finding["verdict"], _said(finding, kind))
        for finding in findings
        if finding["check"] == column
    }
    if not by_dtype:
        return ()
    both = [by_dtype.get(dtype, by_dtype.get("", (DOES_NOT_APPLY, ""))) for dtype in DTYPES]
    return (both[0],) if both[0] == both[1] else tuple(both)


def _said(finding: Mapping[str, str], kind: str) -> str:
    return finding["sentence"] if finding["verdict"] == COUNTED else general(finding["sentence"], kind)


def general(sentence: str, kind: str) -> str:
    """A sentence without what differs from one architecture to the next, so that equal ones are one."""
    text = re.sub(r"^recipe, stage 1 \([\w.]+\): ", "", _one_line(sentence))
    text = re.sub(r"recipe, stage 1 \([\w.]+\): ", "", text)
    text = re.sub(r"recipe, \[model\] name: ", "", re.sub(r"/tmp/[^\s:]+", "FOLDER", text))
    text = re.sub(r"timm:[\w.?=&\[\],]+", "the model", text)
    text = re.sub(r"\b[A-Za-z_]\w*(\.\w+)*\.\d+(\.\w+)*\b", "PATH", text)
    if kind:
        text = text.replace(kind, "the class")
    text = re.sub(r", line \d+\)$", ")", text)  # lines move
    return re.sub(r"(?<![\w./])\d[\d,]*(\.\d+)?%?(?!\w)", "N", text)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def _mark(verdict: str, sentence: str, sentences: dict[str, list[str]]) -> str:
    if verdict == COUNTED:
        return sentence
    if verdict not in sentences:
        return MARKS[verdict]
    if sentence not in sentences[verdict]:
        sentences[verdict].append(sentence)
    return f"{MARKS[verdict]}{sentences[verdict].index(sentence) + 1}"


def _verdict(mark: str, known: Mapping[str, str]) -> tuple[str, str]:
    return (COUNTED, mark) if mark[0].isdecimal() else (VERDICTS[mark[0]], known.get(mark, ""))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    page = read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else Page()
    for file in sys.argv[1:]:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            page.take(json.loads(line))
    print(page.text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
