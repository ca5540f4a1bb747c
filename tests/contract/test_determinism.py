"""Same recipe, seed and versions: the same bytes. And nothing draws from, or sets, the global random state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo_compress
from cases import (
    CALIBRATION,
    IMAGES,
    INT8,
    OPTIONS,
    RANDOM,
    TINY,
    TRAINING,
    Stage,
    base,
    checkpoint,
    context,
    options,
    recipe,
    stage,
)

import zoo
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST, read_manifest
from zoo.plugins.names import of_kind
from zoo.testing import random_state_kept

# Everything in which chance could play: calibration, training on shuffled windows, a loss with weights of its own.
STAGES: list[Stage] = [
    stage("inherit", layers="influence:3", **CALIBRATION),
    stage("prune.structured", ffn=0.25, importance="activation", **CALIBRATION),
    stage("distill", **{**TRAINING, "steps": 3}, loss=[{"use": "kl"}, {"use": "cross-entropy"}, {"use": "hidden"}]),
    stage("lowrank.svd", **CALIBRATION, target="language.attention"),
    INT8,
]


def run(folder: Path, out: str, *, seed: int = 0) -> Path:
    """Run the recipe on a local checkpoint into a folder of its own."""
    asked = zoo_compress.Recipe.parse(recipe(checkpoint("llama-tied", folder), STAGES, folder, seed=seed))
    return zoo_compress.run(asked, out=folder / out).out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    torch.manual_seed(1)
    return run(tmp_path_factory.mktemp("one"), "out")


def test_a_recipe_run_twice_gives_the_same_bytes_and_another_seed_others(one: Path) -> None:
    torch.manual_seed(2)  # the global state is of no consequence
    other = run(one.parent, "other")
    files = read_manifest(one).files
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    for name in (*files, MANIFEST):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for stages in zip(sorted(one.glob("stages/*/")), sorted(other.glob("stages/*/")), strict=True):
        assert stages[0].name == stages[1].name, "fingerprints follow from recipe, data and weights"
    assert not store.verify(one)
    different = run(one.parent, "seeded", seed=1)
    assert (one / "model.safetensors").read_bytes() != (different / "model.safetensors").read_bytes()


def test_a_run_leaves_what_its_plan_foretold(one: Path) -> None:
    stages = json.loads((one / "results.json").read_text())["stages"]
    assert [row["use"] for row in stages] == ["original", *(use for use, _ in STAGES)]
    for row in stages:
        assert (row["params"], row["bytes"]) == (row["predicted"]["params"], row["predicted"]["bytes"]), row["use"]


def test_a_run_that_goes_on_from_a_saved_stage_gives_the_same_bytes(one: Path) -> None:
    asked = zoo_compress.Recipe.parse(recipe(checkpoint("llama-tied", one.parent), STAGES, one.parent))
    zoo_compress.run(asked, out=one.parent / "parts", until=2)
    resumed = zoo_compress.run(asked, out=one.parent / "parts")
    assert resumed.skipped == 2
    assert (resumed.out / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


@pytest.mark.parametrize("use", of_kind("compressor"))
def test_applying_a_stage_keeps_the_global_random_state(use: str, tmp_path: Path) -> None:
    start = base(RANDOM if use == "vocabulary.bpe" else "gpt-neox", tmp_path)
    shared = context(start)
    with random_state_kept(use):
        zoo_compress.apply(start.copy(), use, OPTIONS[use], shared)


@pytest.mark.parametrize("name", IMAGES)
def test_training_on_images_follows_from_the_seed_alone(name: str, tmp_path: Path) -> None:
    """Noise, times and dropped captions are drawn anew at every step, and from the stage's seed."""
    start = base(name, tmp_path)
    found = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        shared = context(start)
        shared.seed = seed
        torch.manual_seed(global_seed)
        with random_state_kept("distilling"):
            found.append(zoo_compress.apply(start.copy(), "distill", options(name, "distill"), shared).tensors())
    one, again, other = found
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", IMAGES)
def test_loading_saving_and_generating_keep_the_global_random_state(name: str, tmp_path: Path) -> None:
    with random_state_kept("loading"):
        model = base(name, tmp_path)
    with random_state_kept("saving and loading"):
        zoo.load(model.save(tmp_path / "saved"))
    asked = {
        key: value
        for key, value in {
            "prompt": "a seven",
            "images": [picture()],
            "steps": 2,
            "count": 1,
            "max_new_tokens": 4,
        }.items()
        if key in model.family.taken(model)
    }
    if model.processor is not None or model.spec.modality == "vision":
        with random_state_kept("generating"):
            model.generate(asked.pop("prompt", None), **asked)


def picture() -> Any:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_the_rest_keeps_the_global_random_state(tmp_path: Path) -> None:
    place = checkpoint("llama-tied", tmp_path)
    calls: dict[str, Any] = {
        "loading a checkpoint": lambda: zoo.load(place),
        "loading a skeleton": lambda: zoo.load(place, device="meta"),
        "loading by name": lambda: base(TINY, tmp_path),
        "random weights": lambda: zoo.load(TINY, weights="random"),
        "saving": lambda: zoo.load(place).save(tmp_path / "saved"),
        "loading an artifact": lambda: zoo.load(tmp_path / "saved"),
        "generating": lambda: zoo.load(place).generate("w5 w6", max_new_tokens=4, temperature=1.0, seed=3),
        "planning": lambda: zoo_compress.plan(zoo_compress.Recipe.parse(recipe(place, STAGES, tmp_path))),
        "a run": lambda: run(tmp_path, "out"),
    }
    for what, call in calls.items():
        with random_state_kept(what):
            call()


def test_the_check_sees_a_changed_state() -> None:
    with (
        pytest.raises(AssertionError, match="a draw changes the global random state of torch; draw from"),
        random_state_kept("a draw"),
    ):
        torch.rand(1)


def test_random_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = zoo.load(TINY, weights="random")
    torch.manual_seed(2)
    other = zoo.load(TINY, weights="random")
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
