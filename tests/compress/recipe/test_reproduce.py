"""`zoo reproduce`: a saved model made again from its manifest is the same to the bit, or the first difference has a name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from outsiders import install
from tiny import RECIPE, workplace
from zoo_compress import Recipe, apply, run
from zoo_compress.recipe.reproduce import Unreproducible, reproduce

import zoo
from zoo import cli, registry
from zoo.artifact.manifest import manifest_text, read_manifest
from zoo.plugins.names import of_kind, refresh
from zoo.system.hashing import digests_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside its recipe, its model and its texts."""
    folder = tmp_path_factory.mktemp("made")
    workplace(folder)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    run(Recipe.load(recipe, overrides=["evaluate.speed=false", "evaluate.control=true"]), out=folder / "run")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


def stage(place: Path, name: str) -> Path:
    return next(p for p in (place / "run/stages").iterdir() if p.is_dir() and name in p.name)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """An artifact whose manifest was changed."""
    manifest = json.loads((folder / "zoo.json").read_text())
    change(manifest)
    (folder / "zoo.json").write_text(manifest_text(manifest))
    return folder


def refusal(folder: Path, *, base: Path) -> str:
    with pytest.raises(Unreproducible) as caught:
        reproduce(folder, base=base)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value).replace(f"{base}/", "")


# --- the same ---------------------------------------------------------------------------------------------------------


def test_a_run_is_reproduced_and_kept_where_asked(place: Path):
    found = reproduce(place / "run", out=place / "again", base=place)
    assert found.identical and not found.circumstances
    assert [one["use"] for one in found.stages] == ["inherit", "prune.structured", "distill", "quantize.int8"]
    assert {one["name"] for one in found.files} >= {"model.safetensors", "tokenizer.json"}
    for one in found.files:
        assert (place / "again" / one["name"]).read_bytes() == (place / "run" / one["name"]).read_bytes()


def test_the_former_name_of_the_distribution_is_read_as_todays(place: Path):
    def recorded_before(manifest: dict[str, Any]) -> None:
        for done in manifest["lineage"]:
            done["made"]["with"]["zoo"] = done["made"]["with"].pop("zoo-compress")
        for about in manifest["plugins"].values():
            about["distribution"] = "zoo"

    folder = edited(place / "run", recorded_before)
    found = reproduce(folder, base=place)
    assert found.identical and not found.circumstances
    assert {about["distribution"] for about in read_manifest(folder).plugins.values()} == {"zoo-compress"}


@pytest.mark.parametrize("name", ["distill", "control"])
def test_a_stage_inside_a_run_is_reproduced(place: Path, name: str):
    assert reproduce(stage(place, name), base=place).identical


def test_a_model_saved_from_python_is_reproduced(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    model = apply(zoo.load("./model"), "inherit", {"layers": "first:1"})
    apply(model, "quantize.int8").save("saved")
    assert reproduce("saved").identical
    further = zoo.load("./model", weights="random")
    apply(further, "inherit", {"layers": "last:1"}).save("random")
    assert reproduce("random").identical


def test_a_loaded_artifact_goes_on_from_the_first_original(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    apply(zoo.load("./model"), "inherit", {"layers": "first:1"}).save("one")
    apply(zoo.load("one"), "quantize.int8").save("two")
    shutil.rmtree("one")
    assert [one["use"] for one in reproduce("two").stages] == ["inherit", "quantize.int8"]


# --- what differs -----------------------------------------------------------------------------------------------------


def test_another_option_is_named_by_the_stage_it_changes(place: Path):
    def another_rate(manifest: dict[str, Any]) -> None:
        manifest["lineage"][2]["options"]["lr"] *= 20

    found = reproduce(edited(place / "run", another_rate), base=place)
    assert found.difference and (found.difference.stage, found.difference.use) == (3, "distill")
    assert found.difference.tensor and 0 < found.difference.differing <= found.difference.values
    assert str(found.difference).startswith(f"the result of stage 3 (distill): in {found.difference.tensor} ")
    shutil.rmtree(place / "run/stages")  # then only the last result can be looked into
    found = reproduce(place / "run", base=place)
    assert found.difference and str(found.difference).startswith(
        "the result of stage 3 (distill) is the first that differs; in the result of stage 4 (quantize.int8): in "
    )


def test_another_structure_is_named_by_the_record(place: Path):
    found = reproduce(edited(place / "run", lambda m: m["lineage"][0]["options"].update(layers="last:1")), base=place)
    assert str(found.difference) == (
        "the result of stage 1 (inherit): the record of what it changed is another: stacks[0].kept[0] is 1, and was 0"
    )
    assert len(found.stages) == 1


def test_a_hash_that_is_wrong_in_the_manifest_alone_is_named_by_its_stage(place: Path):
    def another_hash(manifest: dict[str, Any]) -> None:
        manifest["lineage"][3]["made"]["sha256"] = "0" * 64

    found = reproduce(edited(place / "run", another_hash), base=place)
    assert str(found.difference) == (
        "the result of stage 4 (quantize.int8): its tensors do not have the sha256 of the manifest"
    )


def test_a_flipped_bit_is_named_by_its_tensor(place: Path):
    """The hashes in the manifest are put right, so that the file verifies."""
    file = stage(place, "distill") / "model.safetensors"
    length = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8:length])
    name = sorted(header.keys() - {"__metadata__"})[3]
    content = bytearray(file.read_bytes())
    content[length + header[name]["data_offsets"][0]] ^= 1
    file.write_bytes(content)
    folder = edited(file.parent, lambda m: m["files"].update({"model.safetensors": digests_of(file)}))
    assert cli.main(["verify", str(folder)]) == 0
    found = reproduce(folder, base=place)
    assert all(one["identical"] for one in found.stages)
    assert found.difference and found.difference.tensor == name and found.difference.differing == 1
    assert str(found.difference).startswith(f"the saved weights are not those the stages left: in {name} 1 of ")


def test_versions_that_differ_are_named_first(place: Path, capsys: pytest.CaptureFixture[str]):
    def older(manifest: dict[str, Any]) -> None:
        manifest["lineage"][2]["made"]["with"]["torch"] = "1.0"

    assert cli.main(["reproduce", str(edited(place / "run", older)), "--base", str(place)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("torch is 2.") and said[0].endswith(", and was 1.0 when it was made")
    assert "stage 1 (inherit)" in said[1]


def test_a_stage_of_an_older_version_is_named(place: Path, capsys: pytest.CaptureFixture[str]):
    """Such as one that trained by another schedule; it still loads."""
    folder = edited(place / "run", lambda m: m["lineage"][2].update(version=1))
    assert zoo.load(folder).lineage[2].version == 1
    cli.main(["reproduce", str(folder), "--base", str(place)])
    said = capsys.readouterr().err.splitlines()
    now = registry.compressor("distill").version
    assert said[0] == f"version of stage 3 (distill) is {now}, and was 1 when it was made"


def test_the_changelog_lists_what_gives_other_numbers_than_before():
    changelog = (Path(__file__).parents[3] / "CHANGELOG.md").read_text(encoding="utf-8")
    table = changelog.partition("### Numbers that changed")[2].partition("###")[0]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    raised = {
        name
        for kind, resolve in (("compressor", registry.compressor), ("evaluator", registry.evaluator))
        for name in of_kind(kind)
        if getattr(resolve(name), "version", 1) > 1
    }
    assert {"train", "share.ffn", "perplexity"} <= raised == listed


def test_the_command_says_what_differs_in_json(place: Path, capsys: pytest.CaptureFixture[str]):
    folder = edited(place / "run", lambda m: m["lineage"][0]["options"].update(layers="last:1"))
    assert cli.main(["reproduce", str(folder), "--base", str(place), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["identical"] and found["difference"]["use"] == "inherit"


# --- what is missing --------------------------------------------------------------------------------------------------


def test_data_that_is_gone_or_changed_is_named(place: Path):
    (place / "texts/add.py").write_text("x = 1\n" * 50)
    assert refusal(place / "run", base=place).startswith(
        "run cannot be made again: the calibration data of stage 2 (prune.structured), 'texts[:2]', is not what it was (its sha256 begins with "
    )
    shutil.rmtree(place / "texts")
    assert (
        "the calibration data of stage 2 (prune.structured) is not here: No data source or file called 'texts'."
        in refusal(place / "run", base=place)
    )


def test_an_original_that_is_gone_or_changed_is_named(place: Path):
    file = place / "model/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "the weights of its original './model' are not those it was made from (their sha256 begins with " in refusal(
        place / "run", base=place
    )
    shutil.rmtree(place / "model")
    assert "its original './model' is not here; looked in " in refusal(place / "run", base=place)


def test_a_teacher_that_is_gone_is_named(place: Path):
    folder = edited(place / "run", lambda m: m["lineage"][2]["made"]["teachers"].update({"./teacher": "0" * 64}))
    assert "the teacher './teacher' of stage 3 (distill) is not here; looked in " in refusal(folder, base=place)


def test_a_plugin_that_is_gone_is_named(place: Path):
    folder = edited(place / "run", lambda m: m["lineage"][0].update(plugin="zoo-gone"))
    assert "stage 1 (inherit) needs plugin zoo-gone, which is not installed" in refusal(folder, base=place)


def test_what_an_older_zoo_wrote_is_said_to_lack_its_origin(place: Path):
    folder = edited(place / "run", lambda m: m.pop("source"))
    assert (
        refusal(folder, base=place)
        == "run cannot be made again: its manifest does not say what it was made from (an older zoo wrote it)."
    )


def test_a_damaged_artifact_is_not_compared(place: Path):
    with (place / "run/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert "model.safetensors does not have the sha256 of the manifest" in refusal(place / "run", base=place)


# --- what came from plugins -------------------------------------------------------------------------------------------

REGISTRY = """
[[loss]]
name = "gap"
summary = "Made up for a test"

[[data]]
name = "rhymes"
summary = "Made up for a test"
"""
PLUGIN = """
from zoo.hooks import hookimpl

@hookimpl
def register_losses(register):
    register("gap", "out_taught.things:Gap")

@hookimpl
def register_data(register):
    register("rhymes", "out_taught.things:Rhymes")
"""
THINGS = """
from zoo.data import Sample
from zoo.loss import RowLoss

class Gap(RowLoss):
    def __call__(self, student_NV, teacher_NV, rows, options):
        return (student_NV - teacher_NV).square().mean(-1)

class Rhymes:
    splits = ("train",)

    def records(self, split):
        return [Sample({"text": "so it goes and so it grows " * 40}, f"rhymes:{split}:1")]
"""


@pytest.fixture
def taught(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A recipe with a loss and data of an outside plugin, run; and the folder that the plugin is installed in."""
    site = tmp_path / "site"
    package = install(site, "out_taught", registry=REGISTRY, code=PLUGIN, distribution="out-taught")
    (package / "things.py").write_text(THINGS)
    monkeypatch.syspath_prepend(site)
    refresh()
    recipe = RECIPE.replace('train = "texts[:4]"', 'train = "rhymes"').replace(
        '"distill"', '"distill"\nloss = [{use = "gap"}]'
    )
    (place / "taught.toml").write_text(recipe)
    run(Recipe.load(place / "taught.toml"), out=place / "taught")
    yield place, site
    monkeypatch.undo()
    refresh()


def test_what_came_from_a_plugin_is_recorded_and_named_when_the_plugin_is_gone(taught: tuple[Path, Path]):
    place, site = taught
    assert reproduce(place / "taught", base=place).identical
    manifest = json.loads((place / "taught/zoo.json").read_text())
    assert manifest["lineage"][2]["made"]["uses"] == {"loss gap": "out_taught", "data rhymes": "out_taught"}
    assert manifest["plugins"]["out_taught"] == {"distribution": "out-taught", "version": "1.0"}

    data = REGISTRY.index("[[data]]")
    (site / "out_taught/registry.toml").write_text('api = ">=1,<2"\n' + REGISTRY[data:])
    refresh()
    assert refusal(place / "taught", base=place) == (
        "taught cannot be made again: the loss 'gap' of stage 3 (distill) is not in plugin out_taught 1.0, "
        "which is installed; the model was made with version 1.0."
    )
    shutil.rmtree(site)
    refresh()
    assert zoo.load(place / "taught").params, "it is loaded without"
    assert refusal(place / "taught", base=place) == (
        "taught cannot be made again: the data source 'rhymes' of stage 3 (distill) needs plugin out_taught, "
        "which is not installed: `zoo plugins install out-taught`, then try again."
    )
