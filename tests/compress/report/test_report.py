"""The report: well-formed, self-contained, safe with hostile names, drawn inside its frames whatever was measured."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from zoo_compress.report import html, table
from zoo_compress.report.axes import axis, label_boxes, overlap, text_width, tick_labels
from zoo_compress.report.columns import quality, stages
from zoo_compress.report.confusion import matrix, mistakes
from zoo_compress.report.samples import right
from zoo_compress.report.summary import summary

from zoo.evaluation.shares import accuracy
from zoo.system.quantities import clean, counted, finite, measured, percent, points, quantity, seconds, times

pytestmark = pytest.mark.quick

VOID = {"meta", "br", "img"}
HOSTILE = "<script>alert('x')</script>\"'><img src=http://evil.test/x onerror=alert(1)>&amp;[red]\x1b[31m\ud800"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def interval(value: float, half: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, **more}


def stage(use: str, *, size: float, bpb: float, **more: Any) -> dict[str, Any]:
    metrics = {
        "bits_per_byte": interval(bpb, 0.02),
        "decode_tokens_per_s": interval(6e9 / size, 20),
        "peak_rss_bytes": {"value": 3e8 + size},
    }
    plain = {"use": use, "label": use, "params": int(size / 4), "bytes": int(size), "seconds": 2.5, "options": {}}
    return {**plain, "metrics": metrics, "note": "", "predicted": None, "curves": {}, "samples": [], **more}


@pytest.fixture
def results() -> dict[str, Any]:
    loss = [[step, 7 * math.exp(-step / 30) + 1] for step in range(0, 400, 2)]
    sample = {"prompt": "def load(", "output": "path):"}
    plan = {"params": 2_000_000, "bytes": 8_100_000, "peak_bytes": 700_000_000}
    return {
        "zoo": "0.1.0",
        "recipe": {
            "name": "tiny-code-half",
            "file": "quickstart.toml",
            "seed": 0,
            "text": "[recipe]",
            "overrides": ["a=1"],
        },
        "command": "zoo compress quickstart.toml",
        "data": {"test": {"reference": "stdlib:test", "records": 46, "sha256": "0123456789abcdef"}},
        "model": {"name": "tiny-code", "family": "slm", "modality": "text", "license": "Apache-2.0", "params": 3},
        "machine": {"cpu": "a cpu", "cores": 2, "memory_bytes": 8e9, "torch": "2.15.0", "python": "3.11.7"},
        "started": "2026-01-02T10:11:12",
        "seconds": 431.0,
        "stages": [
            stage("original", size=13.8e6, bpb=1.312, samples=[sample]),
            stage("inherit", size=8e6, bpb=2.4, predicted=plan, options={"layers": "first:4"}),
            stage("distill", size=8e6, bpb=1.371, peak_bytes=9e8, curves={"loss": loss, "kl": loss}, samples=[sample]),
            stage("quantize.int8", size=2.2e6, bpb=1.376, samples=[sample, {"image": PIXEL, "caption": "a seven"}]),
        ],
        "control": stage("control", size=8e6, bpb=1.82, label="from scratch", compares_to=2, curves={"loss": loss}),
        "baselines": [{"label": "xz -9e", "metrics": {"bits_per_byte": {"value": 1.9}}}],
    }


class Page(HTMLParser):
    """Parses strictly: every tag closed in order, attributes unique; keeps elements and texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.labels: list[tuple[float, float, str]] = []
        self.svg: list[list[tuple[str, dict[str, str]]]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        assert len(known) == len(attrs), f"repeated attribute in {tag}"
        self.elements.append((tag, known))
        if tag == "svg":
            self.svg.append([])
        if "svg" in [*self.open, tag]:
            self.svg[-1].append((tag, known))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if self.open[-1:] == ["text"] and tag == "text" and "label" in attributes["class"].split():
            self.labels.append((float(attributes["x"]), float(attributes["y"]), data))


def check(source: str) -> Page:
    """Parse a page and hold it to what every page promises."""
    page = Page(source)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "use", "image"}
        assert not any(name.startswith("on") or name in {"href", "xlink:href", "style"} for name in attributes)
        assert all(value.startswith("data:image/") for name, value in attributes.items() if name == "src")
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
    assert "url(" not in source.split("</style>")[0] and "@import" not in source
    for drawing in page.svg:
        check_drawing(drawing)
    source.encode("utf-8")
    return page


def check_drawing(drawing: list[tuple[str, dict[str, str]]]) -> None:
    """Every coordinate is a finite number inside the viewBox."""
    width, height = (float(part) for part in drawing[0][1]["viewbox"].split()[2:])
    assert [tag for tag, _ in drawing[1:3]] == ["title", "desc"]
    for _, attributes in drawing[1:]:
        for names, limit in ((("x", "x1", "x2", "cx", "width"), width), (("y", "y1", "y2", "cy", "height"), height)):
            for name in set(names) & set(attributes):
                assert 0 <= float(attributes[name]) <= limit + 0.05, attributes
        pairs = re.findall(r"[ML](\S+) (\S+)", attributes.get("d", ""))
        pairs += [pair.split(",") for pair in attributes.get("points", "").split()]
        for x, y in pairs:
            assert 0 <= float(x) <= width and 0 <= float(y) <= height


def printed(results: dict[str, Any], width: int = 100) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(table(results, width=width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text).splitlines()


def test_page_is_well_formed_and_names_every_stage(results: dict[str, Any]) -> None:
    page = check(html(results))
    for name in ("original", "inherit", "distill", "quantize.int8", "from scratch", "xz -9e"):
        assert page.text.count(name) >= 2
    for section in ("After each stage", "Training", "Samples", "Options", "Machine and versions"):
        assert section in page.text
    assert "plan 8.10 MB (−1.2 %)" in page.text and "as planned" in page.text
    assert ("img", {"src": PIXEL, "alt": "a seven"}) in page.elements


def test_page_names_what_packed_layers_run_in(results: dict[str, Any]) -> None:
    assert "<dt>kernels</dt>" not in html(results)
    results["stages"][-1]["kernels"] = {"int8: int8pack up to 8 rows, then widened": 22, "int4: <int4pack>": 7}
    page = html(results)
    assert "int8: int8pack up to 8 rows, then widened (22 layers); int4: &lt;int4pack&gt; (7 layers)" in page
    check(page)


def test_page_does_not_change_its_input_and_is_the_same_twice(results: dict[str, Any]) -> None:
    before = copy.deepcopy(results)
    assert html(results) == html(json.loads(json.dumps(results)))
    assert results == before


def test_control_curve_lies_over_the_stage_it_is_compared_with(results: dict[str, Any]) -> None:
    drawings = [
        drawing for drawing in check(html(results)).svg if any(a.get("class") == "curve last" for _, a in drawing)
    ]
    with_control = [any(a.get("class") == "curve control" for _, a in drawing) for drawing in drawings]
    assert with_control == [True, False]  # it has a loss, but no kl


def test_summary_says_what_was_saved_and_what_it_cost(results: dict[str, Any]) -> None:
    assert summary(results) == (
        "After 3 stages and 7.2 min, tiny-code is 84 % smaller on disk (13.8 MB → 2.20 MB) and has 84 % fewer "
        "parameters (3.45 M → 550 k). Bits per byte went from 1.312 to 1.376 (+4.9 %; lower is better; the intervals "
        "do not overlap). Against the original: decode ×6.27, peak RSS ×0.96. Trained from random weights instead, "
        "the same architecture reaches 1.820, where distill reaches 1.371. For scale, in bits per byte: xz -9e at 1.9."
    )


def test_unknown_metrics_get_a_column_from_unit_and_better(results: dict[str, Any]) -> None:
    for index, row in enumerate(results["stages"]):
        row["metrics"] = {"niceness": {"value": 40.0 + index, "unit": "%", "better": "higher"}, "warp_flops_per_s": 7.0}
    page = check(html({**results, "control": None, "baselines": []}))
    assert "niceness, %, higher is better" in page.text  # on the axis of its plot
    assert "+3 points" in page.text and "warp" in page.text and "flops/s" in page.text
    assert any("niceness" in text for text in printed(results))


def test_hostile_strings_are_shown_and_never_obeyed(results: dict[str, Any]) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            known = {key: poison(entry) for key, entry in value.items()}
            return known | (
                {HOSTILE: "x"} if "layers" in value else {HOSTILE: interval(3, 1)} if "bits_per_byte" in value else {}
            )
        return (
            [poison(entry) for entry in value]
            if isinstance(value, list)
            else HOSTILE
            if isinstance(value, str)
            else value
        )

    poisoned = poison(results)
    poisoned["stages"][2]["curves"] = {HOSTILE: [[0, 1.0], [1, 2.0]]}
    page = check(html(poisoned))
    assert "<script>alert('x')</script>" in page.text and "\x1b" not in page.text
    assert not any(tag == "img" for tag, _ in page.elements)
    lines = printed(poisoned)
    assert "\x1b" not in "".join(lines) and max(map(len, lines)) <= 100
    bracketed = {**results, "stages": [stage("[red]x[/red]", size=1e6, bpb=1.0)]}
    assert any("[red]x[/red]" in text for text in printed(bracketed))


@pytest.mark.parametrize(
    "picture", ["http://evil.test/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,AA" onload="x']
)
def test_only_data_pictures_are_shown(results: dict[str, Any], picture: str) -> None:
    results["stages"][0]["samples"] = [{"image": picture, "caption": "c"}]
    page = check(html(results))
    assert "A picture is shown only when" in page.text


# --- pictures, groups, confusions -------------------------------------------------------------------------------------


def judged(*, wrong: int) -> dict[str, Any]:
    """Answers to 40 digits in two fonts, the first `wrong` fours taken for nines."""
    true = [*("4" * 20), *("9" * 20)]
    said = ["9"] * wrong + true[wrong:]
    return accuracy(true, said, groups=["Lato", "Roboto"] * 20, order=list("0123456789"))


@pytest.fixture
def pictured(results: dict[str, Any]) -> dict[str, Any]:
    """Questions about pictures, before and after."""
    for wrong, row in zip((1, 12, 6, 7), results["stages"], strict=True):
        row["metrics"] = {"exact_match": judged(wrong=wrong)}
        row["samples"] = [
            {"prompt": "Which digit?", "image": PIXEL, "output": "9" if wrong > 6 else "4", "expected": "4"},
            {"prompt": "Which digit?", "image": PIXEL, "output": " 9\n", "expected": "9", "note": "98 %"},
        ]
    return {**results, "control": None, "baselines": []}


def test_answers_stand_in_a_table_with_what_was_expected(pictured: dict[str, Any]) -> None:
    page = check(html(pictured))
    assert sum(tag == "img" for tag, _ in page.elements) == 2  # once a question, not once a stage
    assert page.text.count("2 of 2 right") == 2 and page.text.count("1 of 2 right") == 2
    assert page.text.count("(wrong)") == 2 and page.text.count("(right)") == 6 and "98 %" in page.text
    assert [a.get("class") for tag, a in page.elements if tag == "td" and a.get("class")].count("wrong") == 2
    heads = [a for tag, a in page.elements if tag == "th" and a.get("scope") == "col"]
    assert len(heads) >= 6 and 'aria-label="answers side by side"' in html(pictured)


def test_pictures_that_were_made_stand_side_by_side(results: dict[str, Any]) -> None:
    other = PIXEL.replace("Ggo=", "Ggp=")
    for index, row in enumerate(results["stages"]):
        row["samples"] = [{"prompt": "a seven", "image": PIXEL if index else other, "output": "seeds 0 to 7"}]
    page = check(html(results))
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [picture["src"] for picture in pictures] == [other, PIXEL, PIXEL, PIXEL]
    assert {picture["alt"] for picture in pictures} == {"a seven"} and "expected" not in page.text


def test_small_pictures_are_enlarged_with_square_pixels(results: dict[str, Any]) -> None:
    from PIL import Image

    from zoo.family.vision.images import data_uri

    results["stages"][0]["samples"] = [
        {"prompt": str(size), "image": data_uri(Image.new("L", (size, 3)))} for size in (8, 64, 65, 300)
    ]
    page = check(html({**results, "stages": results["stages"][:1]}))
    assert [attributes.get("class") for tag, attributes in page.elements if tag == "img"] == [
        "square",
        "square",
        None,
        None,
    ]


def test_what_a_stage_says_of_its_layers_stands_in_a_table(results: dict[str, Any]) -> None:
    results["stages"][-1]["layers"] = {
        "blocks.0.q": {"tokens": 4096, "method": "gptq", "rounding_error": 0.12, "error": 0.05, "damping": 0.01},
        f"blocks.1.{HOSTILE}": {"tokens": 0, "method": "gptq", "fallback": HOSTILE},
    }
    page = html(results)
    check(page)
    assert HOSTILE not in page
    last = len(results["stages"]) - 1
    assert (
        f"{last} {results['stages'][-1]['label']}: 2 layers, half of them with an error of at most 0.05 (by rounding 0.12)"
        in page
    )
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"layer\s+tokens\s+method\s+rounding error\s+error\s+damping\s+fallback", text)
    assert re.search(r"blocks\.0\.q\s+4,096\s+gptq\s+0\.12\s+0\.05\s+0\.01\s+–", text)
    results["stages"][-1]["layers"] = ["no table"]
    assert "rounding error" not in html(results)


def test_verdicts_ignore_space_around_answers() -> None:
    assert [
        right(s)
        for s in (
            {"output": "4 ", "expected": "4"},
            {"output": "5", "expected": "4"},
            {"output": "5"},
            {"expected": "4"},
        )
    ] == [
        True,
        False,
        None,
        None,
    ]


def test_confusions_are_drawn_before_and_after(pictured: dict[str, Any]) -> None:
    source = html(pictured)
    page = check(source)
    assert "exact match: original" in page.text and "exact match: quantize.int8" in page.text
    assert "exact match: distill" not in page.text  # only the ends
    assert "Most mistaken: 4 for 9 (1 of 20)." in page.text and "Most mistaken: 4 for 9 (7 of 20)." in page.text
    assert (
        "4 taken for 9: 7 of 20" in page.text
        and source.count('class="cell wrong"') == 2
        and source.count('class="cell right"') == 4
    )
    column = quality(pictured)[0]
    made = [matrix(column, row) for row in stages(pictured)]
    assert made[1] is not None and made[1].counts == [[8, 12], [0, 20]] and mistakes(made[1]) == ["4 for 9 (12 of 20)"]


def test_groups_are_drawn_with_their_intervals(pictured: dict[str, Any]) -> None:
    source = html(pictured)
    page = check(source)
    assert (
        "exact match by group" in page.text
        and "Lato (20)" in page.text
        and "In brackets: how many were counted" in page.text
    )
    assert source.count('class="whisker"') == 4 and "quantize.int8, Lato: 80 %" in page.text
    alone = check(html({**pictured, "stages": pictured["stages"][:1]}))
    assert "exact match by group" in alone.text


def test_of_many_groups_the_lowest_are_drawn(pictured: dict[str, Any]) -> None:
    for row in pictured["stages"]:
        row["metrics"]["exact_match"]["by"] = {
            f"font {i}": {"value": i, "low": i - 1, "high": i + 1, "n": 9} for i in range(57)
        }
    page = check(html(pictured))
    assert "The 24 lowest of 57 groups." in page.text and "font 23 (9)" in page.text and "font 24 (9)" not in page.text


@pytest.mark.parametrize(
    "broken",
    [
        None,
        3,
        [],
        {},
        {"true": ["a"], "predicted": ["a"], "counts": [[1, 2]]},
        {"true": ["a"], "predicted": ["a"], "counts": [[-1]]},
        {"true": ["a"], "predicted": ["a"], "counts": [[math.nan]]},
        {"true": ["a"], "predicted": ["a"], "counts": [["1"]]},
        {"true": ["a"], "predicted": ["a"], "counts": [[0]]},
        {"true": "a", "predicted": "a", "counts": "a"},
        {"true": ["a"] * 999, "predicted": ["a"] * 999, "counts": [[1] * 999] * 999},
        {"true": ["a", "b"], "predicted": ["a"], "counts": [[1]]},
    ],
)
def test_what_is_no_confusion_is_left_out(pictured: dict[str, Any], broken: Any) -> None:
    for row in pictured["stages"]:
        row["metrics"]["exact_match"] |= {"confusion": broken, "by": broken}
    page = check(html(pictured))
    assert "taken for" not in page.text and "by group" not in page.text


def test_long_names_and_many_classes_stay_inside_their_frames(pictured: dict[str, Any]) -> None:
    names = [f"a rather long class name {i} {HOSTILE}" for i in range(40)]
    for row in pictured["stages"]:
        row["metrics"] = {
            "accuracy": accuracy(names * 3, [*names, *names, *names[::-1]], groups=names * 3, order=names)
        }
        row["label"] = HOSTILE
    source = html(pictured)
    check(source)
    assert len(source) < 300_000


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "12", True, 10**400])
def test_what_was_not_measured_is_a_dash(results: dict[str, Any], missing: Any) -> None:
    results["stages"][1]["metrics"] = {"bits_per_byte": {"value": missing, "low": 1, "high": 2}}
    results["stages"][1]["bytes"] = results["stages"][0]["peak_bytes"] = missing
    results["stages"][2]["curves"] = {"loss": [[0, 3.0], [1, missing], [2, 2.0]]}
    page = check(html(results))
    assert "–" in page.text and "nan" not in page.text and "inf" not in page.text.replace("inherit", "")
    assert printed(results)


def test_empty_and_single_stage_runs_are_reported(results: dict[str, Any]) -> None:
    assert "No stage was finished." in check(html({"stages": []})).text
    alone = {**results, "stages": results["stages"][:1], "control": None, "baselines": []}
    page = check(html(alone))
    assert "nothing compressed: 3.45 M parameters, 13.8 MB on disk" in summary(alone)
    assert page.svg == []
    bare = {"stages": [{"use": "original", "metrics": None, "samples": None}], "control": None, "baselines": None}
    assert "original" in check(html(bare)).text and any("original" in text for text in printed(bare))


@pytest.mark.parametrize("count", [2, 4, 11, 20, 40])
def test_labels_never_overlap(results: dict[str, Any], count: int) -> None:
    results["stages"] = [
        stage(f"stage.number{i}", size=1e7 * 0.9 ** (i // 3), bpb=1.3 + i % 4 / 50) for i in range(count)
    ]
    boxes = [
        (x - text_width(text, 12) / 2, y - 12, x + text_width(text, 12) / 2, y + 4)
        for x, y, text in check(html(results)).labels
    ]
    assert len(boxes) == count + 2
    assert not any(overlap(a, b) for index, a in enumerate(boxes) for b in boxes[:index])
    assert all(box[0] >= 0 and box[2] <= 460 for box in boxes)


def test_labels_without_room_are_left_out() -> None:
    placed = label_boxes([(50, 50, 40)] * 30, 16, [], (0, 0, 100, 100))
    assert None in placed and sum(box is not None for box in placed) > 3


def test_a_baseline_far_away_is_told_not_drawn(results: dict[str, Any]) -> None:
    results["baselines"].append({"label": "no model", "metrics": {"bits_per_byte": {"value": 800.0}}})
    assert "Too far away to draw: no model at 800." in check(html(results)).text


def test_long_curves_are_thinned_but_keep_their_spikes(results: dict[str, Any]) -> None:
    values = [[step, 9.0 if step == 7777 else 2.0] for step in range(20000)]
    results["stages"][2]["curves"] = {"loss": values}
    results["control"] = None
    source = html(results)
    check(source)
    assert len(source) < 60_000
    path = next(d for d in re.findall(r' d="([^"]*)"', source) if d.count("L") > 50)
    assert min(float(y) for _, y in re.findall(r"[ML](\S+) (\S+)", path)) < 100


def test_terminal_table_fits_and_has_every_row(results: dict[str, Any]) -> None:
    lines = printed(results)
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for part in ("original", "quantize.int8", "from scratch", "control", "xz -9e", "1.312 ±0.020", "×0.16", "2.20 MB"):
        assert part in text
    assert "…" not in text
    for row in results["stages"]:
        row["metrics"] |= {f"metric_{index}": interval(12345.678, 3) for index in range(8)}
    lines = printed(results)
    assert max(map(len, lines)) <= 100
    assert "Also in report.html: " in "\n".join(lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_number_is_cut_however_narrow_the_terminal(results: dict[str, Any], width: int) -> None:
    lines = printed(results, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width and "…" not in text
    whole = set("\n".join(printed(results, 400)).split())
    shown = text.partition("Also in report.html: ")
    assert set(shown[0].replace("─", " ").split()) <= whole
    assert "1.312 ±0.020" in text and ("13.8 MB" in text or width == 40)
    for label in ("parameters", "on disk", "bits per byte", "decode", "peak RSS", "time taken"):
        heading = {"parameters": "params", "on disk": "disk", "bits per byte": "bit", "time taken": "time"}.get(
            label, label
        )
        assert all(word in shown[0] for word in heading.split()) or label in " ".join(shown[2].split())


def test_lopsided_intervals_and_those_of_speeds_are_shown(results: dict[str, Any]) -> None:
    first, last = results["stages"][0]["metrics"], results["stages"][-1]["metrics"]
    last["bits_per_byte"] = {"value": 1.376, "low": 1.37, "high": 1.62, "n": 9, "of": "windows"}
    first["decode_tokens_per_s"] = {"value": 100.0, "low": 90.0, "high": 110.0, "rounds": [90, 100, 110]}
    last["decode_tokens_per_s"] = {"value": 200.0, "low": 171.0, "high": 300.0, "rounds": [171, 200, 231]}
    text = "\n".join(printed(results))
    assert "1.37 to 1.62" in text and "171 to 300" in text and "×2.00 ±0.10" in text
    assert "decode ×2.00 (±0.10)" in summary(results)
    page = check(html(results)).text
    assert "×2.00 ±0.10" in page and "n = 9 windows" in page and "rounds in which the models take turns" in page


def test_rounds_that_do_not_match_give_no_interval(results: dict[str, Any]) -> None:
    last = results["stages"][-1]["metrics"]
    for rounds in ([], [1], [1, "2"], [0, 0], [1, 2, 3], {"a": 1}, None, [1, float("nan")]):
        results["stages"][0]["metrics"]["decode_tokens_per_s"] = {"value": 400.0, "rounds": [1, 2]}
        last["decode_tokens_per_s"] = {"value": 800.0, "rounds": rounds}
        assert "decode ×2.00," in summary(results)


def test_of_one_sample_there_is_a_count_and_no_interval(results: dict[str, Any]) -> None:
    for row in results["stages"]:
        row["metrics"]["bits_per_byte"] = {"value": 1.5, "n": 1, "of": "windows"}
    assert "\n".join(printed(results)).count("n = 1 window") == 4
    assert not {"low", "high"} & set(accuracy(["a"], ["a"])) and accuracy(["a"], ["a"])["n"] == 1
    assert {"low", "high"} <= set(accuracy(["a", "b"], ["a", "b"]))


def test_quantities_read_well() -> None:
    assert [quantity(v, "bytes") for v in (0, 999, 8_123_456, 2.5e9)] == ["0 B", "999 B", "8.12 MB", "2.50 GB"]
    assert [quantity(v) for v in (3_437_184, 9500, 1.31234, 2.0, None)] == ["3.44 M", "9500", "1.312", "2", "–"]
    assert [seconds(v) for v in (0.04, 0.42, 12, 185, 7800, 5e5)] == [
        "40 ms",
        "0.42 s",
        "12 s",
        "3.1 min",
        "2.2 h",
        "5.8 days",
    ]
    assert measured(1.3124, 1.2911, 1.3337) == ("1.312", "±0.021")
    assert measured(1.3, 1.29, 1.5) == ("1.30", "1.29 to 1.50")
    assert measured(15_000, 12_600, 17_400) == ("15.0 k", "±2.4 k") and measured(82.5, 78.8, 86.2, "%")[1] == "±3.7"
    assert measured(32_500, 30_000, 33_500) == ("32.5 k", "30.0 to 33.5 k")
    assert measured(13_000, 4_900, 27_000) == ("13 k", "5 to 27 k")
    assert measured(1.2e9, 8e8, 1.3e9, "bytes") == ("1.20 GB", "0.80 to 1.30 GB")
    assert measured(12_345_678, 11.2, 3.4e9) == ("12 M", "11.2 to 3.40 G")
    assert [counted(n, of) for n, of in ((1, "records"), (1, "passes"), (1200, "windows"))] == [
        "1 record",
        "1 pass",
        "1,200 windows",
    ]
    assert (times(42, 100), times(1, 0), times(1200, 1)) == ("×0.42", "", "×1200")
    assert [percent(v, 100) for v in (105, 99.7, 100, 250)] == ["+5 %", "−0.3 %", "±0 %", "+150 %"]
    assert (points(70, 71.5), points(3e-9, 0)) == ("−1.5 points", "+3e−9 points")
    assert [finite(v) for v in (math.nan, "1", True, 10**400, 3)] == [None, None, None, None, 3.0]
    assert clean("a\x00\x1b\u202eb\ud800") == "ab?"


@given(st.lists(st.floats(-1e24, 1e24), max_size=5), st.booleans())
def test_axes_hold_their_values_and_have_ticks(values: list[float], zero: bool) -> None:
    found = [finite(value) or 0.0 for value in values]
    scale = axis(found, 10, 200, zero=zero)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12 and len(tick_labels(ticks)) == len(ticks)
    assert all(10 <= scale(value) <= 200 for value in [*found, *ticks])


numbers = st.one_of(
    st.none(), st.floats(), st.integers(), st.integers(0, 10**9), st.floats(0.1, 10), st.text(max_size=3)
)
entries = st.fixed_dictionaries(
    {"value": numbers},
    optional={
        "low": numbers,
        "high": numbers,
        "unit": st.sampled_from(["%", "s", "bytes", "x/s", ""]),
        "by": st.dictionaries(
            st.text(max_size=5),
            st.none() | st.dictionaries(st.sampled_from(["value", "low", "high", "n"]), numbers),
            max_size=30,
        ),
        "confusion": st.integers(1, 4).flatmap(
            lambda n: st.fixed_dictionaries(
                {
                    "true": st.lists(st.text(max_size=9), min_size=n, max_size=n),
                    "predicted": st.lists(st.text(max_size=9), min_size=n, max_size=n),
                    "counts": st.lists(st.lists(st.integers(0, 10**9), min_size=n, max_size=n), min_size=n, max_size=n),
                }
            )
        ),
    },
)
names = st.sampled_from(
    ["bits_per_byte", "accuracy", "peak_rss_bytes", "decode_tokens_per_s", "s", "_per_s", "", "<b>"]
)
stage_like = st.fixed_dictionaries(
    {"use": st.text(max_size=30), "params": numbers, "bytes": numbers, "seconds": numbers, "peak_bytes": numbers},
    optional={
        "metrics": st.none() | st.dictionaries(names, entries, max_size=4),
        "predicted": st.none() | st.fixed_dictionaries({"params": numbers, "bytes": numbers}),
        "curves": st.none() | st.dictionaries(st.text(max_size=5), st.lists(st.tuples(numbers, numbers), max_size=8)),
        "compares_to": st.integers(-2, 5),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(stage_like, max_size=6), st.none() | stage_like, st.lists(stage_like, max_size=2))
def test_anything_measured_is_drawn_inside_its_frame(stages: Any, control: Any, baselines: Any) -> None:
    results = {"stages": stages, "control": control, "baselines": baselines, "seconds": 1.0}
    check(html(results))
    assert max((len(text) for text in printed(results)), default=0) <= 100
