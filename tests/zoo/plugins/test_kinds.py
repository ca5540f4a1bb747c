"""A kind of thing is a row, a contract and a folder of templates: here is one more, and everything knows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from outsiders import install

from zoo.cli import main
from zoo.cli.plugins import new
from zoo.cli.plugins.facts import counted, declares
from zoo.errors import PluginError, UnknownName
from zoo.plugins import manager
from zoo.plugins.kinds import KINDS, Kind
from zoo.plugins.names import of_kind, refresh, resolve
from zoo.testing.contract import checks, perform

pytestmark = pytest.mark.quick

CONTRACT = """
from abc import ABC, abstractmethod

class Palette(ABC):
    @abstractmethod
    def colours(self):
        "Return the colours."

def checks_of_palette(bench, declared):
    from zoo.testing.check import Check

    def run(folder):
        assert resolve_of(declared).colours(), "it has no colour"

    yield Check("palette", bench.label(declared.name), "colours", run, bench.plugin.path)

def resolve_of(declared):
    from zoo.plugins.names import object_of

    return object_of(declared)
"""
PALETTE = Kind(
    "palette",
    "palettes",
    "palettes of colours",
    "register_palettes",
    "warm = out_colours.palettes:Warm",
    ("palette_contract:Palette",),
    "a palette",
    keys={"mood": "text"},
    needed=("mood",),
    strict=True,
    checks="palette_contract:checks_of_palette",
)
REGISTRY = '[[palette]]\nname = "{name}"\nsummary = "Made up for a test"\nmood = "bright"\n'
CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_palettes(register):
    register({name!r}, "{package}.palettes:{made}")
"""
PALETTES = """
from palette_contract import Palette

class Warm(Palette):
    def colours(self):
        return ["red", "yellow"]

class Colourless:
    pass
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with the contract of the new kind, and two plugins that add such things."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ZOO_PLUGINS", "ZOO_STRICT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(KINDS, PALETTE.name, PALETTE)
    (tmp_path / "palette_contract.py").write_text(CONTRACT)
    for package, name, made in (("out_colours", "warm", "Warm"), ("out_grey", "grey", "Colourless")):
        code = CODE.format(name=name, package=package, made=made)
        folder = install(tmp_path, package, registry=REGISTRY.format(name=name), code=code)
        (folder / "palettes.py").write_text(PALETTES)
    refresh()
    yield tmp_path
    monkeypatch.undo()
    refresh()


def test_it_is_declared_registered_and_resolved(site: Path):
    assert not manager.find("out_colours").fault
    assert set(of_kind("palette")) == {"warm", "grey"} and of_kind("palette")["warm"].more == {"mood": "bright"}
    assert resolve("palette", "out_colours:warm").colours() == ["red", "yellow"]
    assert counted(declares(manager.find("out_colours"))) == "1 palette"


def test_what_is_wrong_with_it_is_a_sentence(site: Path):
    with pytest.raises(PluginError, match=r"palette 'grey' \(out_grey.palettes:Colourless\) is not a Palette\.$"):
        resolve("palette", "grey")
    with pytest.raises(UnknownName, match=r"^No palette named 'warn'\. Did you mean 'warm'\? Palettes: warm, grey\.$"):
        resolve("palette", "warn")
    install(site, "out_moodless", registry='[[palette]]\nname = "none"\nsummary = "Made up for a test"\n', code="")
    refresh()
    assert manager.find("out_moodless").fault.endswith("'mood' is missing. Needed keys: name, summary, mood.")


def test_it_is_checked(site: Path):
    found = {(check.kind, check.check): check for check in checks("out_colours")}
    assert perform(found["palette", "colours"], site).outcome == "ok"


def test_projects_begin_with_it(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    templates = shutil.copytree(new.TEMPLATES, site / "templates")
    (templates / "kinds" / "palette").mkdir()
    for name, text in {"readme.md": "It adds a palette.\n", "registry.toml": REGISTRY.format(name="$stem")}.items():
        (templates / "kinds" / "palette" / f"{name}.tmpl").write_text(text)
    monkeypatch.setattr(new, "TEMPLATES", templates)
    monkeypatch.chdir(site)
    assert main(["plugins", "new", "zoo-bright", "--kind", "palette"]) == 0, capsys.readouterr().err
    assert '[[palette]]\nname = "bright"' in (site / "zoo-bright/zoo_bright/registry.toml").read_text()
