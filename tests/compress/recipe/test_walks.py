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


@pytest.mark.parametrize("use", STAGES)
def test_killed_between_blocks_it_goes_on_and_ends_with_the_same_bytes(
    use: str, zygote: Zygote, tmp_path: Path
) -> None:
    place = tmp_path / "killed"
    workplace(place)
    before, after = RECIPE[: RECIPE.index("[[stage]]")], RECIPE[RECIPE.index("[evaluate]") :]
    stage = f'[[stage]]\nuse = "{use}"\n{STAGES[use]}\nsamples = 8\nlength = 16\nbatch = 2\n\n'
    (place / "recipe.toml").write_text(before + stage + after, encoding="utf-8")
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
