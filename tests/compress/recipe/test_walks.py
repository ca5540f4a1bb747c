"""Stages that calibrate block by block, killed in the middle of a model: they go on from the block they had come to."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_stopping import compress, content, signal_at
from tiny import RECIPE, workplace
from zygote import Zygote

OUT = Path("runs/tiny")
SAVE, WATCH = "zoo_compress.calibrate.blocks:Walk._save", "zoo_compress.calibrate.blocks:Walk._watch"
STAGES = {
    "quantize.int4": 'method = "gptq"\ngroup = 32',
    "quantize.int8": 'method = "awq+gptq"\ngroup = 32',
    "prune.wanda": "sparsity = 0.5",
    "prune.sparsegpt": 'pattern = "2:4"',
    "lowrank.svd": "ratio = 0.5",
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("zoo_compress.calibrate.blocks", "zoo_compress.report.sheet") as zygote:
        yield zygote


@pytest.mark.parametrize("use", ["quantize.int4", "prune.wanda"])
def test_with_weights_on_disk_it_ends_with_the_same_bytes(use: str, zygote: Zygote, tmp_path: Path) -> None:
    place = tmp_path / "memory"
    workplace(place)
    text = recipe_of(use)
    (place / "recipe.toml").write_text(text, encoding="utf-8")
    disk = Path(shutil.copytree(place, tmp_path / "disk"))
    (disk / "recipe.toml").write_text(text.replace("[model]\n", "[model]\noffload = true\n"), encoding="utf-8")
    for folder in (place, disk):
        done = compress(zygote, folder)
        assert done.code == 0, done.err
    assert {file.name for file in (disk / OUT).iterdir()} == {file.name for file in (place / OUT).iterdir()}
    saved = [(folder / OUT / "model.safetensors").read_bytes() for folder in (place, disk)]
    assert saved[0] == saved[1]
    stages = [sorted(file.name for file in (folder / OUT / "stages").iterdir()) for folder in (place, disk)]
    assert stages[0] == stages[1], "where weights are kept changes no number, so no fingerprint"


def recipe_of(use: str) -> str:
    before, after = RECIPE[: RECIPE.index("[[stage]]")], RECIPE[RECIPE.index("[evaluate]") :]
    return f'{before}[[stage]]\nuse = "{use}"\n{STAGES[use]}\nsamples = 8\nlength = 16\nbatch = 2\n\n{after}'


@pytest.mark.parametrize("use", STAGES)
def test_killed_between_blocks_it_goes_on_and_ends_with_the_same_bytes(
    use: str, zygote: Zygote, tmp_path: Path
) -> None:
    place = tmp_path / "killed"
    workplace(place)
    (place / "recipe.toml").write_text(recipe_of(use), encoding="utf-8")
    alone = Path(shutil.copytree(place, tmp_path / "alone"))
    assert compress(zygote, alone).code == 0
    for target, count in (
        (SAVE, 1),
        (SAVE, 2),
        (WATCH, 1),
    ):  # before any block is saved, after the first, on the way again
        done = compress(zygote, place, setup=signal_at(target, signal.SIGKILL, count=count))
        assert done.code == -signal.SIGKILL, done.err
    done = compress(zygote, place)
    assert done.code == 0, done.err
    assert "going on after model.layers.0" in done.err
    assert content(place / OUT) == content(alone / OUT)
    assert not (place / OUT / "work").exists()
