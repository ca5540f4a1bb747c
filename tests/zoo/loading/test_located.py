"""What a name or a path means is decided once, and handed on; what files say of it is read once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import RECIPE, workplace
from zoo_compress import Recipe, plan, run

import zoo
from zoo.artifact import manifest
from zoo.loading import locate as locating
from zoo.loading.load import load
from zoo.loading.locate import locate
from zoo.system import reading
from zoo.tensors import safetensors

LONG_AGO = 1_000_000_000.0  # of a time at which files were written
RECIPE_OF_TWO = RECIPE.partition("[evaluate]")[0].replace("steps = 6", 'teacher = "./teacher"\nsteps = 2')
RECIPE_OF_TWO += "[evaluate]\ntasks = []\nspeed = false\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, its model, a teacher that is an artifact, and texts, all of them as old as files are that one downloads."""
    workplace(tmp_path)
    load(tmp_path / "model").save(tmp_path / "teacher")
    (tmp_path / "recipe.toml").write_text(RECIPE_OF_TWO)
    for file in tmp_path.rglob("*"):
        os.utime(file, (LONG_AGO, LONG_AGO))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often what was done with which path or name; what is done is done."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(module: Any, name: str, what: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def counting(path: Any, *more: Any, **given: Any) -> Any:
            counts[what, os.path.relpath(path) if Path(path).exists() else str(path)] += 1
            return real(path, *more, **given)

        monkeypatch.setattr(module, name, counting)

    monkeypatch.setattr(reading, "_texts", reading.Kept[bytes]())
    monkeypatch.setattr(safetensors, "_headers", reading.Kept[Any]())
    count(locating, "_meant", "located")
    count(reading, "_content", "text")
    count(safetensors, "_read", "header")
    count(manifest, "checked_manifest", "manifest")
    return counts


def of_inputs(counts: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The counts of what was there before; what a run writes it proves by reading it again."""
    return {key: count for key, count in counts.items() if not key[1].startswith(("runs", "texts"))}


@pytest.mark.parametrize("name", ["model", "teacher", "tiny-code"])
def test_a_load_reads_everything_once(name: str, place: Path, counted: Counter[tuple[str, str]]) -> None:
    load(place / name if (place / name).exists() else name)
    assert counted and set(of_inputs(counted).values()) == {1}, counted


def test_a_plan_and_its_run_read_everything_once(place: Path, counted: Counter[tuple[str, str]]) -> None:
    recipe = Recipe.load(Path("recipe.toml"))
    planned = plan(recipe)
    assert planned.original.path is not None and set(planned.teachers) == {"./teacher"}
    assert set(of_inputs(counted).values()) == {1}, counted
    counted.clear()
    run(recipe, planned=planned)
    again = {key for key, count in of_inputs(counted).items() if count > 1 or key[0] != "manifest"}
    assert not again, again


def test_what_was_located_is_loaded_without_being_looked_for(place: Path) -> None:
    found = locate(place / "teacher")
    (place / "teacher").rename(place / "moved")
    assert found.asked == str(place / "teacher") and found.spec is None
    located = locate("tiny-code")
    assert located.here is not None and located.stored == "bfloat16" and located.manifest is not None
    assert zoo.load(located).spec.name == "tiny-code"
    assert located.family is locate("tiny-code").family


def test_a_file_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    kept = reading.Kept[str]()
    for content in ("one", "two"):
        file.write_text(content)
        assert kept.of(file, file.read_text) == content  # changed this moment
    os.utime(file, (LONG_AGO, LONG_AGO))
    assert kept.of(file, lambda: "kept") == kept.of(file, lambda: "read again") == "kept"
    os.utime(file, (LONG_AGO, LONG_AGO + 1))
    assert kept.of(file, file.read_text) == "two"
