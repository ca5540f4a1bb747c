"""Encoders as a user meets them: made by transformers or sentence-transformers, planned, compressed, measured, run, made again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from outsiders import zoo as run
from PIL import Image
from sentences import DENSE, plain_folder, sentence_folder
from zygote import Zygote

import zoo

VIT = "timm:vit_tiny_patch16_224?num_classes=0&img_size=32&depth=2"
RECIPE = """
[recipe]
name = "small"

[model]
name = "{model}"
weights = "{weights}"

[data]
train = "{data}"
calibration = "{data}"
test = "{test}"

[[stage]]
use = "prune.structured"
ffn = 0.25
importance = "activation"
samples = 8
target = "{target}"

[[stage]]
use = "distill"
steps = 2
batch = 4
warmup = 1

[[stage]]
use = "quantize.int8"
target = "{target}"

[evaluate]
prompts = [{prompts}]
speed = false
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("timm", "zoo_timm.family", "zoo_timm.evaluators", "zoo_compress.similarity") as started:
        yield started


def sentence(draw: random.Random) -> str:
    return " ".join(f"w{draw.randrange(5, 96)}" for _ in range(draw.randrange(3, 9)))


def texts(folder: Path) -> dict[str, str]:
    draw = random.Random(0)
    records = [{"text": sentence(draw)} for _ in range(12)]
    pairs = [{"sentence1": sentence(draw), "sentence2": sentence(draw), "score": i % 6} for i in range(12)]
    for name, rows in (("train.jsonl", records), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": str(folder / "train.jsonl"), "test": str(folder / "pairs.jsonl")}


def pictures(folder: Path) -> dict[str, str]:
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(8):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"pictures/{i}.png")
    return {"data": str(folder / "pictures"), "test": str(folder / "pictures")}


@pytest.mark.parametrize("kind", ["sentence-transformers", "transformers", "timm"])
def test_an_encoder_goes_all_the_way(kind: str, zygote: Zygote, tmp_path: Path) -> None:
    def command(*words: object) -> str:
        done = zygote.run(*map(str, words), cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    if kind == "timm":
        data, about = pictures(tmp_path), {"model": VIT, "weights": "random", "target": "vision", "prompts": ""}
        asked = ["--image", tmp_path / "pictures/0.png"]
    else:
        make = plain_folder if kind == "transformers" else sentence_folder
        folder = make(tmp_path / "encoder", **({} if kind == "transformers" else {"after": [DENSE, None]}))
        data = texts(tmp_path)
        about = {"model": str(folder), "weights": "auto", "target": "language", "prompts": '"w5 w6"'}
        asked = ["--prompt", "w5 w6"]
    (recipe := tmp_path / "recipe.toml").write_text(RECIPE.format(**data, **about))
    out = tmp_path / "out"
    assert "measures: similarity" in command("plan", recipe)
    assert "cosine" in command("compress", recipe, "--out", out)
    results = json.loads((out / "results.json").read_text())
    figures = results["stages"][-1]["metrics"]
    assert 0 < figures["cosine_to_original"]["value"] < 1 and "rank_correlation_to_original" in figures
    assert ("spearman" in figures) == (kind != "timm")
    assert results["stages"][-1]["samples"][0]["output"].count("\n") >= 1  # the nearest of the data
    again = json.loads(command("eval", out, "--data", data["test"], "--json"))["tasks"]["similarity"]
    assert again["cosine_to_original"]["value"] == pytest.approx(figures["cosine_to_original"]["value"], abs=1e-6)
    vector = json.loads(command("run", out, *asked))
    assert json.loads(command("run", out, *asked, "--json"))["vectors"] == [pytest.approx(vector)]
    assert "task      embedding" in command("info", out) and "embedding" in command("inspect", out)
    assert "is reproduced to the bit" in command("reproduce", out)


def test_lines_that_are_piped_in_become_one_array(tmp_path: Path) -> None:
    folder, file = plain_folder(tmp_path / "encoder"), tmp_path / "vectors.npy"
    done = run("run", str(folder), "--out", str(file), stdin="w5 w6\n\nw7\n")
    assert done.returncode == 0, done.stderr
    vectors = np.load(file, allow_pickle=False)
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, zoo.load(folder).generate(["w5 w6", "w7"]), atol=1e-6)


def test_wrong_requests_are_one_sentence(zygote: Zygote, tmp_path: Path) -> None:
    folder = str(plain_folder(tmp_path / "encoder"))
    (tmp_path / "there.npy").touch()
    for words, sentence in (
        (("run", folder, "-p", "w5", "-o", "v.txt"), "vectors are written as NumPy's .npy; name it v.npy"),
        (("run", folder, "-p", "w5", "-o", "there.npy"), "there.npy is there already"),
        (("run", folder, "-p", "w5", "--temperature", "1"), "'temperature' is not an option of generate"),
        (("eval", folder), "comes without data to measure on"),
        (("eval", folder, "--data", "stdlib:test[:2]", "--task", "perplexity"), "makes vectors: measure similarity"),
    ):
        done = zygote.run(*words, cwd=tmp_path)
        assert done.code != 0 and sentence in done.err, done.err


def test_a_folder_of_sentence_transformers_is_no_writer_whatever_class_it_names(zygote: Zygote, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    assert "task      embedding" in zygote.run("info", str(folder), cwd=tmp_path).out
