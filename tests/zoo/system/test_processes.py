"""Several processes are refused before any work, however they were started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stages import small
from tiny import RECIPE, workplace
from zoo_compress import Recipe, apply, run
from zoo_compress.recipe.reproduce import reproduce

from zoo import cli
from zoo.errors import RequestError
from zoo.system.processes import require_one_process

ALONE = "start it once, without torchrun or accelerate launch."


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    workplace(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_run_in_several_processes_is_refused_on_every_rank(
    recipe: Path, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    out = recipe.parent / "out"
    assert cli.main(["compress", str(recipe), "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: zoo compress works in one process so far, and here are 2 (WORLD_SIZE=2): {ALONE}"
    ]
    with pytest.raises(RequestError, match="A run works in one process"):
        run(Recipe.load(recipe), out=out)
    with pytest.raises(RequestError, match="zoo reproduce works in one process"):
        reproduce(out)
    model = small("llama")
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    with pytest.raises(RequestError, match="train works in one process"):
        apply(model, "train", {"steps": 1})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("WORLD_SIZE", "1", False),
        ("WORLD_SIZE", "two", False),
        ("OMPI_COMM_WORLD_SIZE", "4", True),
        ("RANK", "0", False),
        ("RANK", "1", True),
        ("LOCAL_RANK", "3", True),
    ],
)
def test_what_a_launcher_sets_decides(name: str, value: str, refused: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(RequestError, match=f"{name}={value}"):
            require_one_process("It")
    else:
        require_one_process("It")


def test_torchrun_gets_one_sentence_from_each_process(recipe: Path):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "-m", "zoo"]
    done = subprocess.run(
        [sys.executable, *launch, "compress", str(recipe), "--out", str(recipe.parent / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "zoo compress works in one process" in line]
    assert done.returncode and said and "lock" not in done.stderr and "is writing" not in done.stderr
    assert not (recipe.parent / "out").exists()
