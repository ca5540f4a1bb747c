"""Memory told from shapes, against what torch's own profiler says is allocated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from h2ovl.toy_vlm import records, toy
from snapgen.pipelines import snapgen
from stages import data, small
from torch.profiler import ProfilerActivity, profile
from zoo_compress.dryrun import DryRun, forward_bytes, windows_of
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train import objective
from zoo_compress.train.footprint import training_bytes
from zoo_compress.train.objective import Objective
from zoo_compress.train.options import TrainingOptions, trainable

from zoo.data.dataset import Dataset
from zoo.data.open import open_data
from zoo.errors import ZooError
from zoo.family import Batch
from zoo.model.context import Context
from zoo.model.model import Model


def allocated(work: Any) -> int:
    """The most bytes that lay allocated at once while `work` ran, of those it allocated itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def step(student: Model, teacher: Model | None, losses: Any, batch: Batch, options: TrainingOptions) -> None:
    student.module.requires_grad_(False)
    trained = trainable(student, options).values()
    moments = [torch.empty_like(p) for p in trained for _ in range(2)]
    made = Objective(student, teacher, *resolve_losses(losses))
    made(batch)["loss"].backward()
    assert moments


def cases() -> dict[str, Any]:
    text = [{"use": "kl"}, {"use": "cross-entropy"}, {"use": "hidden"}]
    image = [{"use": "kl"}, {"use": "cross-entropy"}, {"use": "visual-kl"}, {"use": "visual-relation"}]
    return {
        "llama-tied": (lambda: small("llama-tied"), text, data()),
        "mixtral": (lambda: small("mixtral"), text[:1], data()),
        "vision-language": (toy, image, records()),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_a_distillation_step_run_dry_holds_what_a_real_one_does(name: str):
    build, losses, dataset = cases()[name]
    model, options = build(), TrainingOptions(batch=4, length=64)
    rows, features = resolve_losses(losses)
    told = training_bytes(
        model.skeleton(),
        copy.copy(model),
        rows,
        features,
        data="train",
        options=options,
        context=Context(data={"train": dataset}),
    )
    windows = windows_of(model, dataset, batch=4, length=64)
    teacher = model.copy()
    teacher.module.requires_grad_(False)
    own = sum(tensor.nbytes for tensor in model.tensors().values())  # of the teacher, which is already there
    really = allocated(lambda: step(model, teacher, losses, windows.batch, options))
    assert told - own - windows.kept_bytes == pytest.approx(really, rel=0.05)


@pytest.mark.parametrize("layers", ["uniform", "last"])
def test_a_loss_between_blocks_of_two_widths_is_told_too(layers: str):
    """Its linear map is trained, with its gradient and its moments."""
    losses = [{"use": "kl"}, {"use": "hidden", "layers": layers}]
    student, teacher = small("llama"), small("llama", hidden_size=64)
    options, dataset = TrainingOptions(batch=4, length=64), data()
    told = training_bytes(
        student.skeleton(),
        teacher.skeleton(),
        *resolve_losses(losses),
        data="train",
        options=options,
        context=Context(data={"train": dataset}),
    )
    windows = windows_of(student, dataset, batch=4, length=64)
    teacher.module.requires_grad_(False)
    own = sum(tensor.nbytes for tensor in teacher.tensors().values())
    really = allocated(lambda: step(student, teacher, losses, windows.batch, options))
    assert told - own - windows.kept_bytes == pytest.approx(really, rel=0.05)


def test_logits_are_counted_by_the_chunk(monkeypatch: pytest.MonkeyPatch):
    """Eight chunks: their logits are made again for the backward pass, one chunk at a time."""
    model, options = small("llama-tied"), TrainingOptions(batch=8, length=64)
    rows, _ = resolve_losses([{"use": "cross-entropy"}])

    def told() -> int:
        return training_bytes(
            model.skeleton(), None, rows, data="train", options=options, context=Context(data={"train": data()})
        )

    whole = told()
    monkeypatch.setattr(objective, "CHUNK_BYTES", 64 * 4 * model.spec.config["vocab_size"])
    assert told() < whole
    batch = windows_of(model, data(), batch=8, length=64).batch
    assert told() == pytest.approx(
        allocated(lambda: step(model, None, [{"use": "cross-entropy"}], batch, options)), rel=0.1
    )


def test_half_precision_is_trained_on_copies(monkeypatch: pytest.MonkeyPatch):
    from zoo.model.building import cast_parameters

    model, options = small("llama-tied"), TrainingOptions(batch=2, length=16)
    context = Context(data={"train": data()})
    rows, _ = resolve_losses([{"use": "cross-entropy"}])
    wide = training_bytes(model, None, rows, data="train", options=options, context=context)
    cast_parameters(model.module, torch.bfloat16)
    assert training_bytes(model, None, rows, data="train", options=options, context=context) - wide == pytest.approx(
        2 * model.params, rel=0.05
    )


@pytest.mark.parametrize("build", [lambda: small("qwen3"), lambda: small("opt"), toy])
def test_a_forward_pass_without_gradient(build: Any):
    model = build()
    batch = model.family.example(model, batch=4, size=64)
    with torch.no_grad():
        really = allocated(lambda: model.family.forward_body(model, batch))
    assert forward_bytes(model, batch) - sum(
        t.nbytes for t in batch.values() if t.is_floating_point()
    ) == pytest.approx(really, rel=0.05)


def test_the_batch_is_the_largest_of_a_few_of_the_data():
    """Records of one tile, three and five: what is counted holds the pictures of some of them."""
    windows = windows_of(toy().skeleton(), records(), batch=2, length=128)
    sizes = [len(window["pixel_values"]) for window in toy().family.windows(toy(), records(), length=128)]
    assert len(set(sizes)) > 1 and len(windows.batch["pixel_values"]) >= 2 * sum(sizes) / len(sizes) - 1


def test_without_a_tokenizer_windows_are_made_up():
    model = small("llama-tied")
    model.processor = None
    windows = windows_of(model.skeleton(), data(), batch=3, length=20)
    assert {name: tuple(tensor.shape) for name, tensor in windows.batch.items()} == {
        "input_ids": (3, 20),
        "labels": (3, 20),
    }


def test_windows_that_keep_the_data_are_counted_for_all_of_it():
    dataset = open_data("digits-captions:train[:60]")
    windows = windows_of(snapgen(), dataset, batch=2, length=64)
    whole = snapgen().family.windows(snapgen(), dataset, length=64)
    assert windows.kept_bytes == pytest.approx(whole.images_NCHW.nbytes + whole.ids_NT.nbytes, rel=0.2)  # type: ignore[attr-defined]


def test_what_depends_on_values_is_said_to():
    model = small("llama-tied").skeleton()
    model.module.model.register_forward_hook(lambda module, args, output: output.last_hidden_state.nonzero())
    with pytest.raises(ZooError, match="the memory of running llama-tied cannot be told from shapes"):
        forward_bytes(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})


def test_a_dry_run_leaves_the_model_and_the_random_state_alone():
    model = small("llama-tied").skeleton()
    before = torch.get_rng_state()
    rows, _ = resolve_losses([{"use": "cross-entropy"}])
    sizes = [
        training_bytes(
            model,
            None,
            rows,
            data="train",
            options=TrainingOptions(batch=n, length=32),
            context=Context(data={"train": data()}),
        )
        for n in (2, 4)
    ]
    assert sizes[0] < sizes[1] < 2 * sizes[0]
    assert all(p.is_meta for p in model.module.parameters()) and torch.equal(before, torch.get_rng_state())
    assert isinstance(data(), Dataset) and DryRun().now == 0
