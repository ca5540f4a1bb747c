"""The model: the parallel recurrence against a loop, and what zoo does with the family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from torch import nn
from zoo import registry
from zoo.data import open_data
from zoo.testing import check_estimate, check_exact_reload
from zoo_compress import Recipe, run

from zoo_example.model import log_g, scan

RECIPE = Path(__file__).parents[1] / "train.toml"


def test_the_scan_is_the_recurrence():
    draw = torch.Generator().manual_seed(0)
    keep, new = torch.rand(2, 300, 5, generator=draw), torch.rand(2, 300, 5, generator=draw) + 0.1
    for start in (None, torch.rand(2, 5, generator=draw)):
        state = torch.zeros(2, 5) if start is None else start
        states = []
        for t in range(300):
            state = keep[:, t] * state + new[:, t]
            states.append(state)
        found = scan(keep.log(), new.log(), None if start is None else start.log()).exp()
        torch.testing.assert_close(found, torch.stack(states, dim=1), rtol=1e-3, atol=0)  # logs of up to 300 in float32


def test_candidates_are_positive_and_continuous():
    x = torch.tensor([-3.0, -1e-6, 0.0, 2.0])
    torch.testing.assert_close(log_g(x).exp(), torch.tensor([torch.sigmoid(x[0]), 0.5, 0.5, 2.5]))


def test_token_by_token_is_the_same_as_at_once():
    model = zoo.load("tiny-mingru")
    ids = model.family.example(model, batch=2, size=24)["input_ids"]
    with torch.no_grad():
        at_once = model.module(ids).logits
        state, one_by_one = None, []
        for t in range(ids.shape[1]):
            out = model.module(ids[:, t : t + 1], cache=state, use_cache=True)
            state = out.cache
            one_by_one.append(out.logits)
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), at_once, rtol=1e-4, atol=1e-4)


def test_the_weights_are_those_of_the_card_and_know_something():
    spec, model = zoo.info("tiny-mingru"), zoo.load("tiny-mingru")
    assert model.params == spec.params == zoo.load("tiny-mingru", device="meta").params
    quality = {key: float(text.split()[0]) for key, text in model.notes["Quality on held-out data"].items()}
    assert quality["bits per byte, this model"] < quality["bits per byte, xz -9e"]
    found = registry.evaluator("top-k-accuracy").measure(model, open_data("pydoc:test"), options={"max_windows": 20})
    assert found["top_5_accuracy"]["value"] > 50


def test_the_training_recipe_runs(tmp_path: Path):
    small = [
        "data.train=pydoc:train[:3]",
        "data.test=pydoc:test[:1]",
        "stage.2.steps=2",
        "stage.2.batch=2",
        "stage.2.length=32",
    ]
    done = run(Recipe.load(RECIPE, overrides=small), out=tmp_path / "out")
    assert done.load().params == zoo.info("tiny-mingru").params
    assert [row["label"] for row in done.results["baselines"]] == ["xz -9e"]


CHAINS = [
    [("inherit", {"layers": "first:2"}), ("prune.structured", {"ffn": 64}), ("quantize.int8", {})],
    [("prune.structured", {"width": 64}), ("lowrank.svd", {"ratio": 0.5, "whiten": False})],
    [("share.ffn", {}), ("prune.magnitude", {"sparsity": 0.5}), ("palette.kmeans", {"bits": 3})],
]


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("quantize.int8", {}),
        ("quantize.nf4", {}),
        ("palette.kmeans", {"bits": 3}),
        ("prune.magnitude", {"sparsity": 0.5}),
        ("lowrank.svd", {"ratio": 0.5, "whiten": False}),
    ],
)
def test_it_is_compressed_whole(use: str, options: dict[str, object]):
    """Every linear layer of every block, the recurrence's among them, is what the stage makes of it; none is left."""
    model = check_estimate(zoo.load("tiny-mingru"), use, options)
    plain = zoo.load("tiny-mingru", device="meta").module.blocks.named_modules(prefix="blocks")
    layers = [path for path, part in plain if isinstance(part, nn.Linear)]
    state = model.state()
    assert len(layers) == 3 * 6 and all(trait.stage for path in layers for trait in state[path])
    assert set(layers) <= set(state) and "left_out" not in model.lineage[-1].record


def test_the_recurrence_becomes_narrower_with_the_residual():
    model = check_estimate(zoo.load("tiny-mingru"), "prune.structured", {"width": 64})
    mixer = model.module.blocks[0].mixer
    assert mixer.gate.weight.shape == (96, 64) and mixer.out.weight.shape == (64, 96)


def test_zoos_compressors_work_on_it(tmp_path: Path):
    finished = []
    for chain in CHAINS:
        model = zoo.load("tiny-mingru")
        for use, options in chain:
            model = check_estimate(model, use, options)
        finished.append(model)
    check_exact_reload(finished, tmp_path)


@pytest.mark.parametrize(
    ("target", "count"),
    [("language", 6 * 3), ("language.ffn", 3 * 3), ("language.mixer", 3 * 3), ("language.blocks[1:]", 6 * 2)],
)
def test_a_target_takes_in_what_it_says(target: str, count: int):
    model = zoo.load("tiny-mingru", device="meta")
    found = model.anatomy.select(target)
    assert len({*found.projections(), *found.layers}) == count
