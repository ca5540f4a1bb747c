"""A batch may be run in parts: what is drawn for a record, and the losses and gradients, are those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from stages import data, small
from zoo_compress import apply
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train.feed import batch_of, parts
from zoo_compress.train.objective import Objective

import zoo
from zoo.errors import RecipeError
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo.testing.materials import data_for

LOSSES: dict[str, list[str]] = {
    "tiny-code": ["cross-entropy", "kl", "hidden"],
    "tiny-vlm": ["cross-entropy", "kl", "visual-kl", "hidden"],
    "tiny-t2i": ["velocity", "timestep-aware", "reconstruction"],
    "bert": ["cross-entropy", "kl"],
}
ROWS = range(3, 8)


def model_of(name: str) -> Model:
    if name != "bert":
        return zoo.load(name)
    model = small(name)
    model.processor.add_special_tokens({"mask_token": "w3"})
    return model


def windows_of(model: Model, name: str) -> Sequence[Batch]:
    return model.family.windows(model, data() if name == "bert" else data_for(model), length=64)


def batch(model: Model, windows: Sequence[Batch], rows: Sequence[int]) -> Batch:
    return batch_of(model, windows, rows, seed=0, device=torch.device("cpu"))


def objective(model: Model, name: str) -> Objective:
    teacher = model.copy()
    with torch.no_grad():
        for number, weight in enumerate(p for p in teacher.module.parameters() if p.is_floating_point()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.add_(noise.to(weight.dtype) * 0.05 * weight.float().std(correction=0).to(weight.dtype))
    return Objective(model, teacher, *resolve_losses([{"use": use} for use in LOSSES[name]]))


def gradient(model: Model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


@pytest.mark.quick
def test_parts_are_nearly_of_one_size() -> None:
    assert parts(range(5, 13), 3) == [range(5, 7), range(7, 10), range(10, 13)] and parts(range(4), 1) == [range(4)]


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_drawn_for_a_record_does_not_depend_on_the_others(name: str) -> None:
    model = model_of(name)
    windows = windows_of(model, name)
    together = batch(model, windows, ROWS)
    for place, row in enumerate(ROWS):
        alone = batch(model, windows, [row])
        for key in alone.keys() & {"noise", "time", "input_ids", "labels"}:
            mine = alone[key][0]
            others = together[key][place]
            assert torch.equal(others[: len(mine)] if mine.dim() else others, mine), (key, row)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("name", LOSSES)
def test_the_parts_of_a_batch_have_its_losses_and_its_gradient(name: str) -> None:
    model = model_of(name)
    model.module.float()
    windows, losses = windows_of(model, name), objective(model, name)
    whole = batch(model, windows, ROWS)
    expected = losses(whole)
    expected["loss"].backward()  # type: ignore[no-untyped-call]
    wanted = gradient(model)
    model.module.zero_grad()
    pieces = [batch(model, windows, part) for part in parts(ROWS, 3)]
    counts = losses.counts(whole)
    assert counts == {kind: sum(losses.counts(piece)[kind] for piece in pieces) for kind in counts}
    found: dict[str, Any] = {}
    for piece in pieces:
        shares = losses(piece, counts)
        shares["loss"].backward()  # type: ignore[no-untyped-call]
        found = {use: found.get(use, 0.0) + float(share.detach()) for use, share in shares.items()}
    assert found == pytest.approx({use: float(value.detach()) for use, value in expected.items()}, rel=1e-5)
    assert float((gradient(model) - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_counts_are_the_rows_that_are_compared(name: str) -> None:
    model = model_of(name)
    made = batch(model, windows_of(model, name), ROWS)
    kinds = model.family.kinds
    rows = model.family.rows(model, made, kinds)
    assert model.family.counts(model, made, kinds) == {kind: len(rows[kind]) for kind in kinds}


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("name", ["tiny-vlm", "tiny-t2i"])
def test_a_stage_that_accumulates_ends_with_the_same_weights_but_for_rounding(name: str) -> None:
    base = zoo.load(name)
    options: dict[str, Any] = {"steps": 3, "batch": 5, "lr": 1e-3, "warmup": 0}
    made = []
    for accumulate in (1, 2, 5):
        trained = apply(
            base.copy(), "train", {**options, "accumulate": accumulate}, Context(data={"train": data_for(base)})
        )
        made.append(torch.cat([p.detach().float().flatten() for p in trained.module.parameters()]))
    before = torch.cat([p.detach().float().flatten() for p in base.module.parameters()])
    moved = made[0] - before
    for other in made[1:]:
        # one noise for all draws would be 1 and more, means of means over uneven labels some hundredths
        assert float((other - made[0]).norm() / moved.norm()) < 5e-3


def test_a_batch_has_no_more_parts_than_windows() -> None:
    base = small("llama")
    with pytest.raises(RecipeError, match=r"accumulate = 9 .* batch = 8"):
        apply(base, "train", {"steps": 1, "accumulate": 9}, Context(data={"train": data()}))
