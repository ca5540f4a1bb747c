"""What a launcher says of several processes, and the launches that are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stages import check, data, small
from tiny import RECIPE, workplace
from zoo_compress import Recipe, apply, run
from zoo_compress.recipe.reproduce import reproduce

from zoo import cli, registry
from zoo.errors import Refused, RequestError
from zoo.model.context import Context
from zoo.system.processes import rank, require_one_process, several


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    workplace(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "cannot find the other processes, and here are 2 (OMPI_COMM_WORLD_SIZE=2): start it by torchrun.",
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"},
            "trains a copy of the model in each process, and this launch divides it (ACCELERATE_USE_FSDP): choose plain data "
            "parallelism, as torchrun and `accelerate launch --multi_gpu` do.",
        ),
    ],
)
def test_launches_that_cannot_work_are_refused(
    recipe: Path,
    given: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    out = recipe.parent / "out"
    assert cli.main(["compress", str(recipe), "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: zoo compress {said}"]
    with pytest.raises(RequestError, match=r"^A run "):
        run(Recipe.load(recipe), out=out)
    with pytest.raises(RequestError, match="zoo reproduce works in one process"):
        reproduce(out)
    model = small("llama")
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    with pytest.raises(RequestError, match=r"^Training "):
        apply(model, "train", {"steps": 1}, Context(data={"train": data()}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())
    assert not out.exists()


def test_a_loss_that_relates_a_whole_batch_is_not_run_in_parts(monkeypatch: pytest.MonkeyPatch):
    loss, options = registry.loss("rkd"), {"loss": [{"use": "rkd"}]}
    with pytest.raises(Refused, match=r"loss 'rkd' relates all samples .* accumulate = 2 would run it in parts"):
        check(small("llama"), "distill", **options, accumulate=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refused, match=r"several processes would run it in parts"):
        check(small("llama"), "distill", **options)
    assert loss.whole


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
    assert several() == refused
    if refused:
        with pytest.raises(RequestError, match=f"{name}={value}"):
            require_one_process("It")
    else:
        require_one_process("It")


def test_rank_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch):
    assert rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert rank() == 3
