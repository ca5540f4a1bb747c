"""Records that two roles share: known by what they hold, and said in the plan, the report and the card."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import RECIPE, checkpoint
from zoo_compress import Recipe
from zoo_compress.recipe.planner import plan
from zoo_compress.recipe.runner import run

from zoo import cli
from zoo.data.dataset import Dataset, Sample
from zoo.data.open import open_data
from zoo.data.overlap import overlaps

LINES = [f"def f_{i}(a, b):\n    return a + b ** {i}\n" * 8 for i in range(10)]


def said(**roles: list[Sample]) -> list[str]:
    data = {role: Dataset(role, samples) for role, samples in roles.items()}
    return [str(overlap) for overlap in overlaps(data)]


def texts(*words: str, **more: str) -> list[Sample]:
    return [Sample({"text": word, **more}, f"here:{i}") for i, word in enumerate(words)]


# --- what is the same record ------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_records_are_compared_by_what_they_hold():
    assert said(train=texts("a", "b"), test=texts("c", "d")) == []
    assert said(train=texts("a", "b", split="train"), test=texts("b\n", "c", "d", split="test")) == [
        "1 of the 3 records of test is also in train: its figures are not of held-out data."
    ]
    assert said(train=texts("a", prompt="x"), test=texts("a", prompt="y")) == []
    assert said(train=texts("", " "), test=texts("", " ")) == []
    assert said(test=texts("a", "b"), calibration=texts("b"), train=texts("a", "b")) == [
        "1 of the 2 records of test is also in calibration: its figures are not of held-out data.",
        "2 of the 2 records of test are also in train: its figures are not of held-out data.",
        "1 of the 2 records of train is also in calibration.",
    ]


def test_pictures_are_compared_by_their_content(tmp_path: Path):
    pixels = np.full((4, 4), 7, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(buffer.getvalue())
    files = [Sample({"image": tmp_path / name, "text": "7"}, name) for name in ("a.png", "b.png")]
    content = [Sample({"image": buffer.getvalue(), "text": "7"}, "p:1")]
    drawn, other = ([Sample({"image": pixels + more, "text": "7"}, "d:1")] for more in (0, 1))
    assert len(said(train=files[:1], test=files[1:])) == len(said(train=files[:1], test=content)) == 1
    assert len(said(train=drawn, test=drawn)) == 1 and said(train=drawn, test=other) == []


TEXT = "Größe:\n  one\n\ttwo\n"
WRITTEN = {  # the same record as people's files have it
    "a.txt": TEXT,
    "crlf.csv": 'text,n\r\n"' + TEXT.replace("\n", "\r\n") + '",1\r\n',
    "own.json?text=body": json.dumps([{"body": TEXT, "id": 3}]),
    "other_accents.jsonl": json.dumps({"text": unicodedata.normalize("NFD", TEXT), "prompt": None}),
    "asked.jsonl": json.dumps({"prompt": "Größe:", "text": "one two"}),
}


@pytest.mark.parametrize("train", WRITTEN)
def test_a_text_is_the_same_in_any_file(tmp_path: Path, train: str):
    for name, content in WRITTEN.items():
        (tmp_path / name.partition("?")[0]).write_bytes(content.encode())
    for test in WRITTEN:
        assert len(overlaps({role: open_data(ref, base=tmp_path) for role, ref in (("a", train), ("test", test))})) == 1


def test_a_picture_is_the_same_in_any_format_and_under_any_label(tmp_path: Path):
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8))
    for name in ("n01440764/a.png", "tench/b.bmp", "other/c.png"):
        (tmp_path / name).parent.mkdir()
        (drawn.rotate(90) if name == "other/c.png" else drawn).save(tmp_path / name)
    folders = [Sample({"image": file, "text": file.parent.name}, file.name) for file in sorted(tmp_path.rglob("*.*"))]
    decoded = [Sample({"image": drawn, "label": 0}, "saved:1")]
    shown = {sample.where: [sample] for sample in folders}
    assert len(said(train=shown["a.png"], test=shown["b.bmp"])) == len(said(train=shown["b.bmp"], test=decoded)) == 1
    assert said(train=decoded, test=shown["c.png"]) == said(train=shown["a.png"], test=shown["c.png"]) == []


def test_sounds_of_one_word_are_not_the_same():
    spoken = [[Sample({"audio": sound, "text": "yes"}, "s:1")] for sound in (b"one", b"other")]
    assert said(train=spoken[0], test=spoken[1]) == [] and len(said(train=spoken[0], test=spoken[0])) == 1


def test_records_of_fields_of_their_own_are_compared_by_these(tmp_path: Path):
    for name, first in (("qa.jsonl", 0), ("other.jsonl", 9)):
        lines = [{"question": f"q{i}", "answer": f"a{i % 2}"} for i in range(first, first + 3)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for train, shared in (("qa.jsonl?text=answer", 3), ("qa.jsonl?text=[1:]", 2), ("other.jsonl?text=answer", 0)):
        data = {"train": open_data(train, base=tmp_path), "test": open_data("qa.jsonl?text=", base=tmp_path)}
        assert sum(overlap.shared for overlap in overlaps(data)) == shared


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [("a.jsonl", "a.jsonl", 10), ("a.jsonl[:6]", "a.jsonl[4:]", 2), ("a.jsonl[:5]", "a.jsonl[5:]", 0)],
)
def test_slices_and_copies_of_a_file_overlap(tmp_path: Path, train: str, test: str, shared: int):
    for name in ("a.jsonl", "copy.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    for held in (test, test.replace("a.jsonl", "copy.jsonl")):
        shares = overlaps({role: open_data(ref, base=tmp_path) for role, ref in (("train", train), ("test", held))})
        assert sum(overlap.shared for overlap in shares) == shared


# --- where it is said -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("overlap") / "model")


def recipe(folder: Path, model: Path, *, train: str, test: str) -> Path:
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    text = re.sub(r"train = .*\ncalibration = .*\ntest = .*\n", f'train = "{train}"\ntest = "{test}"\n', RECIPE)
    text = text.replace("./model", str(model))
    text = text[: text.index("[[stage]]")] + '[[stage]]\nuse = "quantize.int8"\n\n' + text[text.index("[evaluate]") :]
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def test_an_overlap_is_in_the_plan_the_report_and_the_card(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
):
    file = recipe(tmp_path, model, train="lines.jsonl[:6]", test="lines.jsonl[4:]")
    sentence = "2 of the 6 records of test are also in train: its figures are not of held-out data."
    assert cli.main(["plan", str(file)]) == 0
    printed = capsys.readouterr()
    assert sentence in " ".join((printed.out + printed.err).split())
    assert plan(Recipe.load(file)).to_json()["overlaps"] == [
        {"role": "test", "other": "train", "shared": 2, "records": 6}
    ]
    result = run(Recipe.load(file), out=tmp_path / "out")
    assert [overlap["said"] for overlap in result.results["overlaps"]] == [sentence]
    assert sentence in (tmp_path / "out/report.html").read_text().replace("\u00a0", " ").replace("\u2011", "-")
    card = (tmp_path / "out/README.md").read_text()
    assert sentence in card and "## Quality on test data that was not held out" in card
    assert "## Test data" in card and "Held-out" not in card and "Quality on held-out" not in card


def test_without_an_overlap_the_test_data_is_held_out(tmp_path: Path, model: Path):
    file = recipe(tmp_path, model, train="lines.jsonl[:5]", test="lines.jsonl[5:]")
    result = run(Recipe.load(file), out=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "## Quality on held-out data" in card and "## Held-out data" in card
    assert result.results["overlaps"] == [] and "Data in several roles" not in card
