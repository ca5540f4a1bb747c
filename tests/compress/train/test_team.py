"""Several processes train the model that one would, killed and resumed too, and one of them writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import workplace
from zoo_compress import apply

import zoo
from zoo.model.context import Context
from zoo.testing.materials import data_for

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MODELS = ["tiny-code", "tiny-vlm", "tiny-t2i"]
STEPS = [{"steps": 3, "batch": 5, "lr": 1e-3, "warmup": 0}, {"steps": 2, "batch": 1, "lr": 1e-3, "warmup": 0}]
TOGETHER = """
import json, os, sys
from pathlib import Path
from safetensors.torch import save_file
import zoo
from zoo.model.context import Context
from zoo.testing.materials import data_for
from zoo_compress import apply

folder, models, steps = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
for name in models:
    base = zoo.load(name, dtype="float32")
    for number, options in enumerate(steps):
        trained = apply(base.copy(), "train", options, Context(data={"train": data_for(base)}))
        save_file(trained.tensors(), folder / f"{name}-{number}-{os.environ['RANK']}.safetensors")
"""
RECIPE = """
[recipe]
name = "together"

[model]
name = "./model"

[data]
train = "texts"

[[stage]]
use = "inherit"
layers = "first:1"

[[stage]]
use = "distill"
loss = [{ use = "kl" }, { use = "hidden" }]
steps = 600
batch = 5
length = 32

[[stage]]
use = "quantize.int8"

[evaluate]
tasks = []
control = true
"""


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def vector(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].detach().double().flatten() for name in sorted(tensors)])


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Also where a record's labels are more than another's, noise is drawn, and one process has nothing to do."""
    (tmp_path / "together.py").write_text(TOGETHER)
    command = [*LAUNCH, str(tmp_path / "together.py"), str(tmp_path), json.dumps(MODELS), json.dumps(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    for name in MODELS:
        base = zoo.load(name, dtype="float32")
        before = vector(base.tensors())
        for number, options in enumerate(STEPS):
            alone = vector(apply(base.copy(), "train", options, Context(data={"train": data_for(base)})).tensors())
            first, second = (vector(load_file(tmp_path / f"{name}-{number}-{rank}.safetensors")) for rank in (0, 1))
            assert torch.equal(first, second)
            assert float((first - alone).norm() / (alone - before).norm()) < 5e-3, (name, number)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("stages/*/model.safetensors")):
        found |= {f"{file.parent.name}:{name}": tensor for name, tensor in load_file(file).items()}
    return found


@pytest.mark.slow
def test_a_recipe_in_two_processes_goes_on_after_a_kill_and_is_written_by_one(tmp_path: Path) -> None:
    workplace(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def started(out: str, *launch: str) -> subprocess.Popen[str]:
        command = [*launch, "-m", "zoo", "compress", "recipe.toml", "--out", out]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True, **pipes)

    killed = started("together", *LAUNCH)
    place = tmp_path / "together" / "work"
    while not list(place.glob("*distill*")):
        assert killed.poll() is None
        time.sleep(0.05)
    time.sleep(1.5)  # among its steps
    os.killpg(killed.pid, signal.SIGTERM)
    assert "stopped after step" in killed.communicate()[1] and list(place.glob("*distill*/training.safetensors"))
    together, alone = started("together", *LAUNCH), started("alone", sys.executable)
    (said, remarks), (_, others) = together.communicate(), alone.communicate()
    assert not together.returncode and not alone.returncode, (remarks, others)
    assert said.count("Plan of together") == said.count("Model: together") == 1 == remarks.count("going on from step")
    mine, theirs = weights(tmp_path / "together"), weights(tmp_path / "alone")
    assert mine.keys() == theirs.keys() and len({name.partition(":")[0] for name in mine}) == 4
    for name in (key for key in mine if "distill" in key or "control" in key):
        moved = float((mine[name].double() - theirs[name].double()).norm() / theirs[name].double().norm())
        assert moved < 5e-3, (name, moved)
