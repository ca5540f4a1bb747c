"""Wrong input: one clear sentence with the file, the place and the nearest right thing; exit code 2; no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outsiders import zoo
from tiny import RECIPE, texts

from zoo import cli
from zoo.plugins.names import of_kind

GOOD = (
    RECIPE.replace("./model", "tiny-code")
    .replace('layers = "first:1"', 'layers = "first:3"')
    .replace("ffn = 48", "ffn = 384")
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    texts(tmp_path / "texts")
    (tmp_path / "recipe.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'name = "tiny-code"',
            'name = "tiny-cod"',
            "recipe.toml, line 7, [model] name: No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all",
        ),
        (
            'use = "inherit"',
            'use = "inherti"',
            "recipe.toml, line 15, stage 1: No compressor named 'inherti'. Did you mean 'inherit'? Compressors: ",
        ),
        (
            "layers =",
            "layer =",
            "recipe.toml, line 16, stage 1 (inherit): 'layer' is not an option. Did you mean 'layers'? Options: ",
        ),
        ('layers = "first:3"', 'layers = "first:3"\ntarget = "langauge"', "recipe.toml, line 14, stage 1 (inherit): "),
        (
            "steps = 6",
            'steps = "six"',
            "recipe.toml, line 24, stage 3 (distill): steps = 'six': input should be a whole number",
        ),
        (
            "steps = 6",
            "steps = 0",
            "recipe.toml, line 24, stage 3 (distill): steps = 0: input should be greater than or equal to 1.",
        ),
        ('layers = "first:3"', 'layers = "first:9"', "recipe.toml, line 14, stage 1 (inherit): "),
        ("ffn = 384", "ffn = 4096", "recipe.toml, line 18, stage 2 (prune.structured): "),
        (
            "texts[:4]",
            "text[:4]",
            "recipe.toml, line 10, [data] train: No data source or file called 'text'. Did you mean 'texts'? Sources: ",
        ),
        (
            "texts[:4]",
            "texts[9:]",
            "recipe.toml, line 10, [data] train: 'texts[9:]' holds no records (6 before the slice).",
        ),
        (
            'use = "prune.structured"\nffn = 384',
            'use = "quantize.int8"',
            "recipe.toml, line 21, stage 3 (distill): distill trains plain float weights, but ",
        ),
        (
            "steps = 6",
            'steps = 6\nteacher = "tiny-cod"',
            "recipe.toml, line 22, stage 3 (distill): teacher: No model named 'tiny-cod'. Did you mean 'tiny-code'?",
        ),
        (
            "steps = 6",
            'steps = 6\nloss = [{ use = "kll" }]',
            "recipe.toml, line 22, stage 3 (distill): No loss named 'kll'. Did you mean 'kl'?",
        ),
        (
            "max_tokens = 400",
            "max_tokns = 400",
            "recipe.toml, line 37, [evaluate.perplexity]: 'max_tokns' is not an option. Did you mean 'max_tokens'?",
        ),
        (
            'tasks = ["perplexity"]',
            'tasks = ["perplexty"]',
            "recipe.toml, line 33, [evaluate]: no evaluator named 'perplexty'. Did you mean 'perplexity'?",
        ),
    ],
    ids=[
        "model",
        "stage",
        "option",
        "target",
        "type",
        "range",
        "blocks",
        "width",
        "data",
        "empty",
        "order",
        "teacher",
        "loss",
        "task option",
        "task",
    ],
)
def test_a_wrong_recipe_is_one_sentence_from_plan_and_from_compress(
    place: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, sentence: str
):
    assert GOOD.count(old) == 1
    (place / "recipe.toml").write_text(GOOD.replace(old, new))
    for command in (["plan", "recipe.toml"], ["compress", "recipe.toml"], ["plan", "recipe.toml", "--json"]):
        code = cli.main(command)
        out, err = capsys.readouterr()
        assert (code, out) == (2, "") and err.startswith(f"error: {sentence}"), err
        assert err.count("\n") == 1 and err.endswith((".\n", "?\n"))
    assert not (place / "runs").exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["plan", "recipe.tml"], "recipe.tml does not exist. Did you mean 'recipe.toml'?"),
        (["compress", "texts"], "texts is not a file."),
        (
            ["plan", "recipe.toml", "--set", "stage.1.layers"],
            "--set 'stage.1.layers': write KEY=VALUE, such as stage.1.layers=first:3.",
        ),
        (
            ["plan", "recipe.toml", "--set", "stage.10.layers=1"],
            "--set 'stage.10.layers=1': there is no 'stage.10.layers'; stages are numbered from 1 to 4.",
        ),
        (
            ["plan", "recipe.toml", "--set", "stage.1.layer=1"],
            "recipe.toml, --set stage.1.layer, stage 1 (inherit): 'layer' is not an option. Did you mean 'layers'? "
            "Options: data, samples, length, batch, chat, layers, target, keep_ends.",
        ),
        (
            ["compress", "recipe.toml", "--until", "distil"],
            "The recipe has no stage 'distil'. Did you mean 'distill'? Stages: 1 (inherit), 2 (prune.structured), 3 (distill), 4 (quantize.int8).",
        ),
        (
            ["compress", "recipe.toml", "--out", "texts"],
            "texts is not empty and holds no run of this recipe; choose another --out, or pass --force to write into it.",
        ),
        (["compress", "recipe.toml", "--out", "recipe.toml"], "recipe.toml is a file; name a directory."),
        (["compress", "recipe.toml", "--out", "/proc/x"], "/proc/x cannot be written: No such file or directory."),
        (["plan", "recipe.toml", "--out", "recipe.toml"], "recipe.toml is a file; name a directory."),
        (
            ["plan", "recipe.toml", "--set", "model.name=./texts"],
            "recipe.toml, --set model.name, [model] name: texts is not a model directory: it holds neither zoo.json nor a known config such as config.json.",
        ),
        (
            ["run", "./texts", "-p", "x"],
            "texts is not a model directory: it holds neither zoo.json nor a known config such as config.json.",
        ),
        (
            ["inspect", "./texts"],
            "texts is not a model directory: it holds neither zoo.json nor a known config such as config.json.",
        ),
        (["verify", "texts"], "texts holds no zoo.json; it is not a zoo artifact."),
        (["inspect", "./texst"], "texst does not exist. `zoo list` shows the models that load by name."),
        (
            ["inspect", "tiny-cod"],
            "No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all {models}.",
        ),
        (
            ["run", "tiny-code", "-p", "x", "--stop", ""],
            "--stop '': a stop string is some text; an empty one would stop before the first character.",
        ),
        (["run", "tiny-code", "-p", "x", "--seed", "-1"], "--seed -1: input should be greater than or equal to 0."),
        (["run", "tiny-code", "-p", "import os\n" * 600], "The prompt has"),
        (
            ["eval", "tiny-code", "--data", "txts"],
            "No data source or file called 'txts'. Did you mean 'texts'? Sources: {sources}; looked for a file at txts.",
        ),
        (
            ["eval", "tiny-code", "--data", "texts:test"],
            "texts is plain text, which has no split 'test'; use slices such as [:90%] and [90%:].",
        ),
    ],
)
def test_a_wrong_request_is_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
):
    from zoo.catalog import catalogue

    code = cli.main(args)
    out, err = capsys.readouterr()
    sentence = sentence.format(models=len(catalogue()), sources=", ".join(sorted(of_kind("data"))))
    assert (code, out) == (2, "") and err.startswith(f"error: {sentence}"), err
    assert err.count("\n") == 1 and (not sentence.endswith((".", "?")) or err == f"error: {sentence}\n")
    assert sorted(path.name for path in place.iterdir()) == ["recipe.toml", "texts"]


@pytest.mark.quick
def test_a_bad_record_is_named_by_file_and_line(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "c.jsonl").write_text(json.dumps({"text": "a"}) + "\n{\n")
    (place / "recipe.toml").write_text(GOOD.replace("texts[:4]", "c.jsonl"))
    assert cli.main(["plan", "recipe.toml"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: recipe.toml, line 10, [data] train: c.jsonl:2: not a JSON object: "
    )


def test_a_fresh_process_says_it_like_this(place: Path):
    (place / "recipe.toml").write_text(GOOD.replace("layers =", "layer ="))
    done = zoo("compress", str(place / "recipe.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {place}/recipe.toml, line 16, stage 1 (inherit): 'layer' is not an option. Did you mean"
    )
    assert "Traceback" not in done.stderr
