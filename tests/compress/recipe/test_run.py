"""Runs, end to end, on a tiny checkpoint and a folder of texts: what is written, what is skipped, what a kill leaves."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tiny import RECIPE, checkpoint, workplace
from zoo_compress import Recipe, apply, run
from zoo_compress.methods.quantize.formats.kernels import counted
from zoo_compress.recipe.folder import DRAFT, OURS
from zoo_compress.report.summary import summary
from zygote import Done, Zygote

import zoo
from zoo.artifact import store
from zoo.artifact.manifest import read_manifest
from zoo.errors import ArtifactError, OutputError, RequestError
from zoo.system.quantities import seconds

USES = ["original", "inherit", "prune.structured", "distill", "quantize.int8"]
OUT = Path("runs/tiny")

# A checkpoint after every step of training.
OFTEN = "import zoo_compress.train.checkpoint\nzoo_compress.train.checkpoint.CHECKPOINT_SECONDS = 0\n"

# Die right before the KILL-th change of the file system; an undisturbed process writes how many there were.
DEADLY = (
    OFTEN
    + """
import os, signal, zoo.cli
count = 0
def counted(real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
"""
)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Path:
    """A workplace with an undisturbed run in runs/tiny."""
    folder = tmp_path_factory.mktemp("finished")
    workplace(folder)
    done = zygote.run("compress", "recipe.toml", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def place(tmp_path: Path, finished: Path) -> Path:
    """A copy of the workplace with its finished run."""
    return Path(shutil.copytree(finished, tmp_path / "place"))


@pytest.fixture
def fresh(place: Path) -> Path:
    """A copy of the workplace without a run."""
    shutil.rmtree(place / "runs")
    return place


def compress(zygote: Zygote, place: Path, *args: str, setup: str = "") -> Done:
    return zygote.run("compress", "recipe.toml", *args, cwd=place, setup=setup)


def results(place: Path) -> Any:
    return json.loads((place / OUT / "results.json").read_text())


def weights(place: Path) -> bytes:
    return (place / OUT / "model.safetensors").read_bytes()


def stages(place: Path) -> dict[str, float]:
    """The directories of finished stages, and when their weights were written."""
    return {
        folder.name: (folder / "model.safetensors").stat().st_mtime_ns
        for folder in sorted((place / OUT / "stages").glob("*/"))
    }


def require_sound(place: Path) -> None:
    """Whatever is there as a model is a whole one."""
    out = place / OUT
    finished = list(out.glob("stages/[!.]*/"))
    for folder in finished:
        assert store.verify(folder) == []
    if (out / "zoo.json").exists():
        assert store.verify(out) == []
    elif (
        out / "config.json"
    ).exists():  # to transformers this is a model: then all of one stage, or of the result before
        assert any(same_files(folder, out) for folder in finished), sorted(out.iterdir())
    for log in out.glob("stages/[!.]*.json"):
        json.loads(log.read_text())


def same_files(stage: Path, out: Path) -> bool:
    """Whether every file of a stage's model is in `out`; card and manifest are the result's own."""
    files = [file for file in stage.rglob("*") if file.is_file() and file.name not in ("README.md", "zoo.json")]
    return all(
        (out / file.relative_to(stage)).is_file() and (out / file.relative_to(stage)).read_bytes() == file.read_bytes()
        for file in files
    )


def require_tidy(place: Path) -> None:
    """Nothing half-written is left, and no checkpoint."""
    left = [path for path in (place / "runs").rglob("*") if DRAFT.fullmatch(path.name)]
    assert not left and not (place / OUT / "work").exists()


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_results_have_the_promised_shape_and_the_plan_was_exact(finished: Path):
    found = results(finished)
    assert [stage["use"] for stage in found["stages"]] == USES
    for number, stage in enumerate(found["stages"]):
        assert {key: stage[key] for key in ("params", "bytes")} == {
            key: stage["predicted"][key] for key in ("params", "bytes")
        }
        quality = stage["metrics"]["bits_per_byte"]
        assert 0 < quality["low"] <= quality["value"] <= quality["high"]
        saved = [*(finished / OUT / "stages").glob(f"{number:02d}-*/"), finished / "model"][0]
        size = (saved / "model.safetensors").stat().st_size
        assert size - 6000 < stage["bytes"] < size  # the header is not counted
    sizes = [stage["bytes"] for stage in found["stages"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 4
    assert {name: len(curve) for name, curve in found["stages"][3]["curves"].items()} == {"kl": 6}
    kernels = counted(zoo.load(finished / OUT).module)  # of this machine, and so in no artifact
    assert [stage["kernels"] for stage in found["stages"]] == [{}, {}, {}, {}, kernels] and kernels
    assert "int8pack" not in (finished / OUT / "zoo.json").read_text()
    assert found["control"] is None
    assert found["model"]["params"] == found["stages"][0]["params"] > 0


def test_results_and_report_name_the_recipe_the_data_and_the_command(zygote: Zygote, place: Path):
    args = ("--set", "recipe.summary=it's small", "--until", "2")
    assert compress(zygote, place, *args).code == 0
    found = results(place)
    assert found["recipe"] == {
        "name": "tiny",
        "file": "recipe.toml",
        "seed": 0,
        "overrides": ["recipe.summary=it's small"],
        "text": RECIPE,
    }
    assert found["command"] == """zoo compress recipe.toml --set 'recipe.summary=it'"'"'s small' --until 2"""
    assert found["data"]["train"].keys() == {"reference", "records", "sha256"}
    assert {role: (data["reference"], data["records"]) for role, data in found["data"].items()} == {
        "train": ("texts[:4]", 4),
        "calibration": ("texts[:2]", 2),
        "test": ("texts[4:]", 2),
    }
    assert (found["model"]["reference"], found["model"]["weights"]) == ("./model", "auto")
    page = html.unescape((place / OUT / "report.html").read_text())
    assert found["command"] in page and RECIPE in page
    assert f"texts[4:], 2 records, sha256 {found['data']['test']['sha256'][:12]}" in page


def test_the_result_is_the_last_stage_and_runs(finished: Path):
    out = finished / OUT
    (last,) = (out / "stages").glob("04-*/")
    told = ("README.md", "zoo.json")  # the card and manifest of the result also have its figures
    assert all((out / file.name).read_bytes() == file.read_bytes() for file in last.iterdir() if file.name not in told)
    value = results(finished)["stages"][-1]["metrics"]["bits_per_byte"]["value"]
    assert f"bits per byte, this model: {value:.3f}" in (out / "README.md").read_text(encoding="utf-8")
    model = zoo.load(out)
    assert [stage.use for stage in model.lineage] == USES[1:] and model.spec.name == "tiny"
    assert isinstance(model.generate("def add", max_new_tokens=4), str)
    assert model.params == results(finished)["stages"][-1]["params"]
    assert (out / "recipe.toml").read_text() == RECIPE
    assert "<html" in (out / "report.html").read_text()
    require_sound(finished)
    require_tidy(finished)


def test_verify_is_clean_and_names_a_flipped_byte(zygote: Zygote, place: Path):
    done = zygote.run("verify", str(OUT), cwd=place)
    assert (done.code, done.out) == (0, "runs/tiny: every file is as saved.\n")
    for name in read_manifest(place / OUT).files:
        file = place / OUT / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        done = zygote.run("verify", str(OUT), "--json", cwd=place)
        assert done.code == 1 and [problem["file"] for problem in done.json["problems"]] == [name]
        file.write_bytes(good)


def test_the_same_recipe_gives_the_same_bytes_and_leaves_the_random_state(
    fresh: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(fresh)
    torch.manual_seed(5), numpy.random.seed(5), random.seed(5)
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    result = run(Recipe.load("recipe.toml"))
    assert torch.equal(torch.get_rng_state(), states[0]) and numpy.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert (
        weights(fresh) == weights(finished)
        and (fresh / OUT / "zoo.json").read_bytes() == (finished / OUT / "zoo.json").read_bytes()
    )
    assert (result.out, result.skipped) == (OUT, 0) and result.results["stages"] and result.load().params < 20_000
    assert run(Recipe.load("recipe.toml")).skipped == 4


def test_json_is_all_there_is_on_stdout(zygote: Zygote, place: Path):
    done = compress(zygote, place, "--json", "--quiet")
    assert (done.code, done.err) == (0, "") and done.json == results(place)


def test_quiet_is_the_result_without_the_plan(zygote: Zygote, place: Path):
    done = compress(zygote, place, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "quantize.int8" in done.out and "Model: runs/tiny " in done.out and "peak memory" not in done.out


def test_speed_is_measured_once_in_a_process_of_its_own(zygote: Zygote, place: Path):
    asked = ("--until", "inherit", "--set", "evaluate.speed={prefill = 8, decode = 2, repeats = 1}")
    done = compress(zygote, place, *asked, "--json")
    assert done.code == 0, done.err
    for stage in done.json["stages"]:
        assert {"prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes", "bits_per_byte"} <= set(
            stage["metrics"]
        )
        assert (
            stage["metrics"]["decode_tokens_per_s"]["value"] > 0 and stage["metrics"]["peak_rss_bytes"]["value"] > 10**7
        )
        speed = stage["metrics"]["decode_tokens_per_s"]
        assert speed["n"] == len(speed["rounds"]) == 6 and speed["of"] == "rounds"
        assert (speed["low"], speed["high"]) == (min(speed["rounds"]), max(speed["rounds"]))
    assert re.search(r"decode ×[\d.]+ \((±[\d.]+|[\d.]+ to [\d.]+)\)", summary(done.json))
    again = compress(zygote, place, *asked, "--json")
    assert "measuring speed" in done.err and "measuring speed" not in again.err
    assert again.json["stages"] == done.json["stages"]


def test_the_control_is_the_same_architecture_from_random_weights(zygote: Zygote, place: Path):
    done = compress(zygote, place, "--set", "evaluate.control=true", "--json")
    assert done.code == 0, done.err
    control, trained = done.json["control"], done.json["stages"][3]
    assert control["compares_to"] == 3 and control["params"] == trained["params"]
    assert control["metrics"]["bits_per_byte"]["value"] != trained["metrics"]["bits_per_byte"]["value"]
    assert compress(zygote, place, "--set", "evaluate.control=true", "--json").json["control"] == control
    require_tidy(place)


# --- what a rerun does ------------------------------------------------------------------------------------------------


def test_a_rerun_skips_what_is_finished(zygote: Zygote, place: Path):
    before, result, model = stages(place), results(place), (place / OUT / "model.safetensors").stat().st_mtime_ns
    done = compress(zygote, place)
    assert (
        done.code == 0
        and [line for line in done.err.splitlines() if "already done" in line][-1]
        == "stage 4 (quantize.int8): already done"
    )
    assert "running" not in done.err and "measuring" not in done.err
    assert stages(place) == before
    assert results(place) == result, "the time, the start and the plan are those of the run that did the work"
    assert f"Took {seconds(result['seconds'])}\n" in done.out
    assert (place / OUT / "model.safetensors").stat().st_mtime_ns == model


def test_a_changed_stage_redoes_itself_and_those_after_it(zygote: Zygote, place: Path, finished: Path):
    before = stages(place)
    done = compress(zygote, place, "--set", "stage.3.steps=7")
    assert (
        done.code == 0
        and "stage 2 (prune.structured): already done" in done.err
        and "stage 3 (distill): running" in done.err
    )
    after = stages(place)
    assert [name[:2] for name in after] == ["01", "02", "03", "04"] and len(after.keys() & before.keys()) == 2
    assert {name: after[name] for name in after.keys() & before.keys()} == dict(list(before.items())[:2])
    assert weights(place) != weights(finished)
    assert (place / OUT / "recipe.toml").read_text() == f"# run with --set stage.3.steps=7\n{RECIPE}"
    assert compress(zygote, place).code == 0 and weights(place) == weights(finished)
    require_tidy(place)


@pytest.mark.parametrize(
    ("file", "redone"),
    [("texts/add.py", "stage 2"), ("model/model.safetensors", "stage 1"), ("model/tokenizer.json", "stage 1")],
)
def test_changed_data_or_weights_redo_what_depends_on_them(zygote: Zygote, place: Path, file: str, redone: str):
    old = (place / file).read_bytes()
    new = {".py": old + b"# more\n", ".json": old + b"\n", ".safetensors": old[:-1] + bytes([old[-1] ^ 1])}[
        Path(file).suffix
    ]
    (place / file).write_bytes(new)
    done = compress(zygote, place)
    assert done.code == 0 and next(line for line in done.err.splitlines() if line.endswith("running")).startswith(
        redone
    )


def test_another_original_is_measured_anew(zygote: Zygote, place: Path):
    before = results(place)["stages"][0]
    checkpoint(place / "other", "llama-tied", num_hidden_layers=1)
    done = compress(zygote, place, "--set", "model.name=./other")
    assert done.code == 0, done.err
    assert results(place)["stages"][0]["metrics"] != before["metrics"]


def test_until_then_only_then_the_rest_is_the_same_as_all_at_once(zygote: Zygote, fresh: Path, finished: Path):
    done = compress(zygote, fresh, "--only", "distill")
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "error: --only needs the stages before it, and stage 1 (inherit) is not done; run with --until 1 first.",
    ) and not (fresh / "runs").exists()
    assert compress(zygote, fresh, "--until", "2").code == 0
    assert [stage["use"] for stage in results(fresh)["stages"]] == USES[:3] and len(
        zoo.load(fresh / OUT, device="meta").lineage
    ) == 2
    done = compress(zygote, fresh, "--only", "distill")
    assert done.code == 0 and "stage 2 (prune.structured): already done" in done.err
    assert [stage["use"] for stage in results(fresh)["stages"]] == USES[:4] and len(stages(fresh)) == 3
    assert compress(zygote, fresh).code == 0 and weights(fresh) == weights(finished)
    assert compress(zygote, fresh, "--until", "inherit").code == 0
    assert len(zoo.load(fresh / OUT).lineage) == 1 and len(stages(fresh)) == 4  # later stages stay for the next time
    require_sound(fresh)


# --- killed anywhere --------------------------------------------------------------------------------------------------


def test_killed_again_and_again_a_run_ends_with_the_same_bytes(zygote: Zygote, fresh: Path, finished: Path):
    for kills in range(40):  # every life is a little longer than the one before
        done = compress(zygote, fresh, setup=f"KILL = {7 + 8 * kills}\n{DEADLY}")
        require_sound(fresh)
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL, done.err
    assert done.code == 0 and kills >= 6, kills
    assert weights(fresh) == weights(finished)
    assert [stage["params"] for stage in results(fresh)["stages"]] == [
        stage["params"] for stage in results(finished)["stages"]
    ]
    assert [s["curves"] for s in results(fresh)["stages"]] == [s["curves"] for s in results(finished)["stages"]]
    require_tidy(fresh)


def test_killed_while_a_result_is_replaced_there_is_none_or_a_whole_one(zygote: Zygote, place: Path):
    """The old result loads with plain transformers (it has a config.json), the new one does not."""
    assert compress(zygote, place, "--until", "1").code == 0 and (place / OUT / "config.json").exists()
    seen = set()
    for last in (3, *range(26, 60, 6)):
        killed = Path(shutil.copytree(place, place.parent / f"at-{last}"))
        assert compress(zygote, killed, setup=f"KILL = {last}\n{DEADLY}").code == -signal.SIGKILL
        require_sound(killed)
        seen.add((killed / OUT / "zoo.json").exists())
    assert seen == {True, False}
    assert compress(zygote, killed).code == 0 and len(zoo.load(killed / OUT, device="meta").lineage) == 4
    assert not (killed / OUT / "config.json").exists()
    require_tidy(killed)


def until(condition: Any) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for 200 seconds")


def test_stopped_while_training_it_goes_on_from_its_last_step(zygote: Zygote, place: Path, tmp_path: Path):
    args, first = ("compress", "recipe.toml", "--set", "stage.3.steps=120"), results(place)
    other = Path(shutil.copytree(place, tmp_path / "undisturbed"))
    assert zygote.run(*args, cwd=other).code == 0

    def step() -> int:
        from safetensors import safe_open

        for file in (place / OUT / "work").glob("*/training.safetensors"):
            with safe_open(file, framework="pt") as checkpoint:
                return int(checkpoint.metadata()["step"])
        return 0

    with zygote.start(*args, cwd=place, setup=OFTEN) as process:
        until(lambda: step() >= 10)
        process.kill(signal.SIGINT)
    done = process.done
    assert done.code == 130
    assert (
        done.err.splitlines()[-1]
        == "error: interrupted; what is finished is kept in runs/tiny: the same command goes on from there."
    )
    assert "Traceback" not in done.err
    reached = step()
    with zygote.start(*args, cwd=place, setup=OFTEN) as process:
        until(lambda: step() >= reached + 10)
        process.kill(signal.SIGKILL)
    assert process.done.code == -signal.SIGKILL
    reached = step()
    before = json.loads((place / OUT / "run.json").read_text())
    done = zygote.run(*args, cwd=place)
    after, left = results(place), sum(before["times"]["unfinished"].values())
    killed = before["times"]["now"]
    assert (after["started"], after["sessions"]) == (first["started"], first["sessions"] + 3)
    assert 0 < left < after["stages"][3]["seconds"] < after["seconds"] - first["seconds"]
    assert after["seconds"] > before["times"]["seconds"] > first["seconds"] and killed["stage"].startswith("03-distill")
    assert done.code == 0 and f"going on from step {reached}\n" in done.err
    assert weights(place) == weights(other)
    assert results(place)["stages"][3]["curves"] == results(other)["stages"][3]["curves"]
    require_tidy(place)


# --- the output directory ---------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_a_directory_that_holds_something_else_is_refused_untouched(zygote: Zygote, fresh: Path):
    (fresh / "mine").mkdir()
    (fresh / "mine/thesis.txt").write_text("years")
    before = snapshot(fresh)
    done = compress(zygote, fresh, "--out", "mine")
    assert (done.code, done.out) == (2, "") and snapshot(fresh) == before
    assert (
        done.err
        == "error: mine is not empty and holds no run of this recipe; choose another --out, or pass --force to write into it.\n"
    )


def test_a_run_of_another_recipe_is_refused_untouched(zygote: Zygote, place: Path):
    before = snapshot(place)
    done = compress(zygote, place, "--out", str(OUT), "--set", "recipe.name=other")
    assert done.code == 2 and snapshot(place) == before
    assert (
        done.err
        == "error: runs/tiny holds a run of 'tiny', not of 'other'; choose another --out, or pass --force to replace it.\n"
    )
    assert compress(zygote, place, "--out", str(OUT), "--set", "recipe.name=other", "--until", "1", "--force").code == 0
    assert zoo.load(place / OUT, device="meta").spec.name == "other"
    require_sound(place)


def test_force_writes_beside_what_is_there(zygote: Zygote, fresh: Path):
    for name in (
        "thesis.txt",
        "stages/play.txt",
        "stages/.draft.abcdefgh",
        "weights.safetensors",
        ".git/config",
        "work/notes",
    ):
        (fresh / OUT / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / OUT / name).write_text(name)
    done = compress(zygote, fresh, "--until", "1", "--force")
    assert done.code == 0, done.err
    for name in (
        "thesis.txt",
        "stages/play.txt",
        "stages/.draft.abcdefgh",
        "weights.safetensors",
        ".git/config",
        "work/notes",
    ):
        assert (fresh / OUT / name).read_text() == name
    assert store.verify(fresh / OUT) == []


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("texts/add.py", "texts/add.py is a file; name a directory."),
        ("texts/add.py/x", "texts/add.py/x cannot be written: {place}/texts/add.py is a file."),
        ("/proc/x", "/proc/x cannot be written: No such file or directory."),
        ("n" * 300, "n" * 300 + " cannot be written: File name too long."),
    ],
    ids=["file", "below-a-file", "proc", "long"],
)
def test_an_output_that_cannot_be_written_is_known_before_any_work(
    zygote: Zygote, fresh: Path, out: str, sentence: str
):
    done = compress(zygote, fresh, "--out", out)
    assert (done.code, done.out, done.err) == (2, "", f"error: {sentence.format(place=fresh)}\n")


def test_two_runs_do_not_write_into_one_directory(zygote: Zygote, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    with zygote.start("compress", "recipe.toml", "--set", "stage.3.steps=5000", cwd=place, setup=OFTEN) as process:
        until(lambda: any((place / OUT / "work").glob("*/training.safetensors")))
        who = rf"process {process.pid} on {re.escape(socket.gethostname())}, since 20\S+:\d\d"
        with pytest.raises(
            OutputError,
            match=rf"^Another run is writing into runs/tiny \({who}\); wait for it, or choose another out\.$",
        ):
            run(Recipe.load("recipe.toml"))
        process.kill(signal.SIGKILL)
    assert run(Recipe.load("recipe.toml")).skipped == 4


def test_a_damaged_stage_is_named_not_published(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    (file,) = (place / OUT / "stages").glob("04-*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    (OUT / "zoo.json").unlink()
    with pytest.raises(
        ArtifactError,
        match=r"stages/04-quantize.int8-\w+/model.safetensors does not have the sha256 of the manifest.* Remove \S+ and run again",
    ):
        run(Recipe.load("recipe.toml"))
    shutil.rmtree(file.parent)
    assert run(Recipe.load("recipe.toml")).skipped == 3 and not store.verify(OUT)


def test_a_damaged_stage_that_a_later_one_starts_from_is_named(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    (file,) = (place / OUT / "stages").glob("03-*/tokenizer.json")
    shutil.rmtree(next((place / OUT / "stages").glob("04-*/")))
    file.unlink()
    with pytest.raises(
        ArtifactError,
        match=r"stages/03-distill-\w+/tokenizer.json is missing; .* Remove runs/tiny/stages/03-distill-\w+ and run again",
    ):
        run(Recipe.load("recipe.toml"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--until", "distil"],
            "The recipe has no stage 'distil'. Did you mean 'distill'? Stages: 1 (inherit), 2 (prune.structured), 3 (distill), 4 (quantize.int8).",
        ),
        (
            ["--only", "0"],
            "The recipe has no stage '0'. Stages: 1 (inherit), 2 (prune.structured), 3 (distill), 4 (quantize.int8).",
        ),
        (["--only", "1", "--until", "2"], "--until and --only exclude each other; give one of them."),
        (["--set", "stage=[]"], "recipe.toml: there is no stage to run; add a [[stage]] table."),
    ],
    ids=["name", "number", "both", "none"],
)
def test_wrong_stages_are_refused(zygote: Zygote, fresh: Path, args: list[str], sentence: str):
    done = compress(zygote, fresh, *args)
    assert (done.code, done.out, done.err) == (2, "", f"error: {sentence}\n")
    assert not (fresh / "runs").exists()


def test_what_a_killed_process_leaves_is_told_from_what_is_there():
    assert DRAFT.fullmatch(".model.safetensors.ab_12xyz")["name"] == "model.safetensors"  # type: ignore[index]
    assert DRAFT.fullmatch(".01-inherit-0123456789ab.old.ab_12xyz")["name"] == "01-inherit-0123456789ab"  # type: ignore[index]
    assert (
        OURS.fullmatch("01-inherit-0123456789ab.json")
        and OURS.fullmatch("control-0123456789ab")
        and OURS.fullmatch("00-original.json")
    )
    assert not OURS.fullmatch("thesis") and not OURS.fullmatch("01-inherit") and not DRAFT.fullmatch(".git")


# --- one stage alone --------------------------------------------------------------------------------------------------


def test_a_stage_that_needs_a_teacher_says_how_to_pass_one():
    with pytest.raises(
        RequestError,
        match=r"distill needs its teacher: pass Context\(load=\.\.\.\), a function from 'original' to a model\.",
    ):
        apply(zoo.load("tiny-code"), "distill", {"steps": 1})


def test_random_weights_are_known_as_such_when_a_run_goes_on(place: Path):
    """A tokenizer is only trained for weights that are not; what a stage left says nothing of where its weights came from."""
    recipe = Recipe.parse(
        {
            "recipe": {"name": "random"},
            "model": {"name": "tiny-code", "weights": "random"},
            "data": {"train": str(place / "texts"), "test": str(place / "texts")},
            "stage": [{"use": "inherit", "layers": "first:1"}, {"use": "vocabulary.bpe"}],
            "evaluate": {"speed": False, "perplexity": {"max_tokens": 200}},
        }
    )
    out = place / "runs" / "random"
    first = run(recipe, out=out, until=1)
    assert first.results["stages"][1]["metrics"] == {}  # no tokenizer yet, and nothing learnt
    done = run(recipe, out=out)
    assert done.skipped == 1 and done.results["stages"][2]["metrics"]["bits_per_byte"]["value"] > 0
