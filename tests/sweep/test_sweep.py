"""The sweep over one architecture of each kind, and the page of all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import page
import pytest
from architectures import architectures
from findings import COUNTED, DOES_NOT_APPLY, FAILED, REFUSED, WORKS

SWEEP = Path(__file__).parent / "sweep.py"
# part -> an architecture of each kind
CHOSEN = {
    "transformers": (
        "qwen3 causal-lm",
        "gpt2 causal-lm",
        "mixtral causal-lm",
        "mamba causal-lm",
        "falcon_h1 causal-lm",
        "deepseek_v3 causal-lm",
        "bert masked-lm",
        "roberta masked-lm",
        "t5 seq2seq",
        "bart seq2seq",
        "modernbert embedding",
    ),
    "timm": ("resnet", "swin_transformer"),
    "diffusers": ("UNet2DConditionModel", "DiTTransformer2DModel"),
}
CASES = [
    (part, name, check) for part, names in CHOSEN.items() for name in names for check in ("load", *page.COLUMNS[1:])
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Architecture -> the line that the sweep writes of it; two at the same time."""
    out = tmp_path_factory.mktemp("sweep") / "lines"
    names = [name for names in CHOSEN.values() for name in names]
    subprocess.run([sys.executable, SWEEP, *CHOSEN, "--only", *names, "--out", out], check=True, capture_output=True)
    return {line["name"]: line for line in map(json.loads, out.read_text().splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name", "check"), CASES, ids=[f"{name}: {check}" for _, name, check in CASES])
def test_it_works_or_is_refused_in_the_plan(
    part: str, name: str, check: str, findings: dict[str, dict[str, Any]]
) -> None:
    said = [finding for finding in findings[name]["findings"] if finding["check"] == check]
    loads = {finding["verdict"] for finding in findings[name]["findings"] if finding["check"] == "load"}
    refused = loads == {REFUSED}  # then there is nothing more to ask
    assert said or refused or check == "process", f"{name} was not asked: {findings[name]['findings'][-1]}"
    failed = [f"{finding['dtype']}: {finding['sentence']}" for finding in said if finding["verdict"] == FAILED]
    assert not failed, "\n".join(failed)
    assert all(finding["sentence"] for finding in said if finding["verdict"] == REFUSED)


@pytest.mark.slow
def test_the_page_says_what_the_sweep_finds(findings: dict[str, dict[str, Any]]) -> None:
    """With the libraries that the page names, its rows are those found here."""
    written, found = page.read(page.PAGE.read_text(encoding="utf-8")), page.Page()
    for line in findings.values():
        found.take(line)
    for part, names in CHOSEN.items():
        if written.versions.get(part) == found.versions[part]:
            assert {name: written.rows[part].get(name) for name in names} == found.rows[part]


def test_the_page_is_as_its_generator_writes_it() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.read(text).text() == text, "run: python tests/sweep/page.py > page.md && mv page.md docs/sweep.md"


def test_every_architecture_of_the_chosen_is_one_of_its_library() -> None:
    for part, names in CHOSEN.items():
        assert set(names) <= {architecture.name for architecture in architectures(part)}


def test_a_page_is_read_as_it_was_written() -> None:
    """Verdicts of both precisions, of each, and what is not built."""
    versions = {"torch": "1", "timm": "2"}
    verdicts = [
        ("load", "float32", WORKS, ""),
        ("load", "bfloat16", FAILED, "timm:x breaks at a.0.b (zoo/x.py, line 7)"),
    ]
    verdicts += [
        ("all", "", DOES_NOT_APPLY, ""),
        ("layers", "", COUNTED, "23 of 24"),
        ("train", "", REFUSED, "recipe, stage 1 (train): it has 12 | 13 layers"),
    ]
    findings = [dict(zip(("check", "dtype", "verdict", "sentence"), found, strict=True)) for found in verdicts]
    made = page.Page()
    about = {"part": "timm", "kind": "", "versions": versions}
    made.take({**about, "name": "resnet", "findings": findings})
    made.take(
        {
            **about,
            "name": "vgg",
            "findings": [{"check": "build", "dtype": "", "verdict": "not built", "sentence": "too large"}],
        }
    )
    text = made.text()
    assert "| resnet |  | ✓/✗1 |" in text and "- vgg: too large" in text
    assert "- ✗1: the model breaks at PATH (zoo/x.py)" in text and "- r1: it has N / N layers" in text
    assert "Layers reached: 23 of 24; all of them in 0 of 1 architectures." in text
    assert page.read(text) == made


def test_a_row_keeps_the_stages_that_a_later_sweep_did_not_ask() -> None:
    about = {"part": "timm", "kind": "", "versions": {"torch": "1", "timm": "2"}, "name": "resnet"}
    load = {"check": "load", "dtype": "", "verdict": WORKS, "sentence": ""}
    made = page.Page()
    made.take({**about, "findings": [load, {**load, "check": "train"}]})
    made.take({**about, "findings": [load, {**load, "check": "layers", "verdict": COUNTED, "sentence": "3 of 3"}]})
    cells = made.rows["timm"]["resnet"][1]
    assert cells["train"] == ((WORKS, ""),) and cells["layers"] == ((COUNTED, "3 of 3"),)
    made.take({**about, "findings": [{**load, "verdict": REFUSED, "sentence": "no"}]})
    assert not made.rows["timm"]["resnet"][1]["train"]


def test_a_page_written_before_a_column_was_is_read() -> None:
    old = "## timm\n\n| architecture | class | load |\n| --- | --- | :-: |\n| resnet |  | ✓ |\n"
    assert page.read(old).rows["timm"]["resnet"] == ("", {**dict.fromkeys(page.COLUMNS, ()), "load": ((WORKS, ""),)})
