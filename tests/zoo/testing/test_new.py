"""`zoo plugins new`: what it writes, what it refuses, and with which words. That what it writes works, test_check.py shows."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from zoo.cli import main
from zoo.cli.plugins.new import TEMPLATES, begins_with, modalities
from zoo.plugins.declarations import read

KINDS = begins_with()

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new(*args: str) -> int:
    return main(["plugins", "new", *args])


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert new(*args) == 2
    assert not any(Path().iterdir()), "what is refused writes nothing"
    return capsys.readouterr().err.strip()


def test_it_says_what_it_wrote_and_what_to_type(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert new("zoo-thing") == 0
    said, wrong = capsys.readouterr()
    assert said.splitlines()[0] == "Wrote 9 files into zoo-thing:"
    assert (
        said.endswith("\nNext:\n  cd zoo-thing\n  pip install -e .\n  pytest\n  zoo plugins check zoo-thing\n")
        and not wrong
    )
    listed = {line.strip() for line in said.splitlines()[1:10]}
    assert listed == {
        file.relative_to("zoo-thing").as_posix() for file in Path("zoo-thing").rglob("*") if file.is_file()
    }
    assert [place.name for place in tmp_path.iterdir()] == ["zoo-thing"], "nothing is left beside it"


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [["loss", "compressor"], list(KINDS)], ids=" and ".join)
def test_what_it_writes_is_declared_and_passes_ruff(kinds: list[str]):
    assert new("zoo-thing", *(part for kind in kinds for part in ("--kind", kind)), "--out", "made") == 0
    about = tomllib.loads(Path("made/pyproject.toml").read_text())
    assert (
        about["project"]["name"] == "zoo-thing" and about["tool"]["pytest"]["ini_options"]["zoo_plugin"] == "zoo-thing"
    )
    assert ("zoo" in about["project"]["entry-points"]) == (kinds != ["catalogue"])
    found = read(Path("made/zoo_thing/registry.toml"), plugin="zoo-thing")
    declared = {name.kind for name in found.names} | ({"catalogue"} if "catalogue" in kinds else set())
    assert declared == set(kinds) and len(found.models) == len({"family", "catalogue"} & set(kinds))
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "made"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("modality", modalities())
def test_a_family_begins_with_a_model_of_its_modality(modality: str):
    assert new("zoo-thing", "--kind", "family", "--modality", modality, "--out", "made") == 0
    found = read(Path("made/zoo_thing/registry.toml"), plugin="zoo-thing")
    assert {name.modality for name in found.names} == {spec.modality for spec in found.models} == {modality}
    for command in (("check",), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "made"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    assert not any(re.search(r"\$[a-z{]", file.read_text()) for file in Path("made").rglob("*.*") if file.is_file())


def test_a_modality_that_is_none_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert refusal(capsys, "zoo-thing", "--kind", "family", "--modality", "txt") == (
        "error: 'txt' is no modality that a family can begin with. Did you mean 'text'? "
        "Modalities: vision, text, text-to-image, vision-language."
    )
    assert refusal(capsys, "zoo-thing", "--modality", "text") == (
        "error: --modality is of a family: add --kind family, or leave it out."
    )


def test_no_placeholder_is_left():
    assert new("Zoo.My_Thing", *(part for kind in KINDS for part in ("--kind", kind)), "--out", "made") == 0
    for file in Path("made").rglob("*.*"):
        if file.is_file():
            assert not re.search(r"\$[a-z{]", file.read_text()), file
    assert 'name = "my-thing.drop"' in Path("made/zoo_my_thing/registry.toml").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "zoo thing!",
            "'zoo thing!' is no name of a distribution: letters, digits, '.', '_' and '-', with a letter or digit at both ends. Take 'zoo-thing'.",
        ),
        ("-thing", "with a letter or digit at both ends. Take 'thing'."),
        ("größe", "Take 'gr-e'."),
        ("../up", "Take 'up'."),
        (
            "3d-things",
            "'3d-things' would need a package called '3d_things', which Python does not take. Take 'zoo-3d-things'.",
        ),
        ("lambda", "'lambda' would need a package called 'lambda', which Python does not take. Take 'zoo-lambda'."),
        ("ZOO-slm", "A plugin called 'zoo_slm' is installed already; choose another name, such as 'ZOO-slm-2'."),
        ("zoo", "A plugin called 'zoo' is installed already; choose another name, such as 'zoo-2'."),
        (
            "torch",
            "A package called 'torch' is there already, and would be hidden; choose another name, such as 'zoo-torch'.",
        ),
        (
            "json",
            "A package called 'json' is there already, and would be hidden; choose another name, such as 'zoo-json'.",
        ),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_another(name: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert refusal(capsys, "--", name).endswith(said)


def test_what_is_no_kind_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert refusal(capsys, "zoo-thing", "--kind", "compresor") == (
        "error: 'compresor' is nothing a plugin adds. Did you mean 'compressor'? "
        "Kinds: compressor, family, loss, evaluator, data, command, catalogue."
    )


def test_a_folder_that_holds_something_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    Path("zoo-thing").mkdir()
    assert new("zoo-thing") == 0, "an empty one is filled"
    before = {file: file.read_bytes() for file in Path("zoo-thing").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert new("zoo-thing") == 2
    assert capsys.readouterr().err == "error: zoo-thing is not empty; name another folder with --out, or empty it.\n"
    assert {file: file.read_bytes() for file in Path("zoo-thing").rglob("*") if file.is_file()} == before
    Path("file").touch()
    assert new("zoo-thing", "--out", "file") == 2
    assert capsys.readouterr().err == "error: file is a file; name another folder with --out.\n"
    assert new("zoo-thing", "--out", "file/inside") == 2
    assert capsys.readouterr().err == f"error: file/inside cannot be written: {tmp_path / 'file'} is a file.\n"


def test_the_templates_are_in_the_wheel():
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {file.relative_to(TEMPLATES.parents[1]).as_posix() for file in TEMPLATES.rglob("*.tmpl")} <= shipped
    assert len(list(TEMPLATES.rglob("*.tmpl"))) > 30


def test_the_command_is_installed_beside_python():
    assert list(Path(sysconfig.get_path("scripts")).glob("zoo*"))
