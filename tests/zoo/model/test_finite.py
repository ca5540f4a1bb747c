"""Nan and infinity: the sentence names tensor, layer, record or step, and nothing is saved, generated or measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import stages
import torch
from stages import small

import zoo.data
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError, ZooError
from zoo.evaluation import figures
from zoo.family.base import window_origin
from zoo.loss import LossOptions, RowLoss
from zoo.model.building import cast_parameters
from zoo.model.context import Context
from zoo.model.health import cause, damage, require_finite_outputs
from zoo.model.model import Model
from zoo.tensors.batch import Rows
from zoo.tensors.finite import ends

pytestmark = pytest.mark.quick

UP = "model.layers.1.mlp.up_proj.weight"
BAD = r"model.layers.1.mlp.up_proj.weight \(64, 32\) holds 1 value that is not finite, the first \(nan\) at \[3, 5\]"


def poisoned(value: float = math.nan, *, name: str = "llama", tensor: str = UP) -> Model:
    model = small(name)
    with torch.no_grad():
        model.tensors()[tensor][3, 5] = value
    return model


def in_half(dtype: str) -> Model:
    model = small("llama")
    cast_parameters(model.module, getattr(torch, dtype))
    return replace(model, dtype=dtype, stored=dtype)


def texts(*found: str) -> Dataset:
    return Dataset("texts", [Sample({"text": text}, f"texts:{number}") for number, text in enumerate(found)])


WORDS = " ".join(f"w{3 + i % 90}" for i in range(200))
STEP = {"steps": 3, "batch": 2, "length": 16, "warmup": 0}


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_found_wherever_it_is(dtype: torch.dtype, value: float):
    for size in (1, 7, 16, 1000):
        for at in {0, size // 2, size - 1}:
            tensor = torch.linspace(-1, 1, size).to(dtype)
            tensor[at] = value
            low, high = ends(tensor)
            assert not (math.isfinite(low) and math.isfinite(high))
    assert ends(torch.empty(0, 3)) == (0.0, 0.0)


@pytest.mark.parametrize(
    "use",
    [
        "quantize.int8",
        "quantize.nf4",
        "prune.magnitude",
        "prune.structured",
        "share.ffn",
        "inherit",
        "lowrank.svd",
        "train",
    ],
)
def test_no_stage_starts_from_damaged_weights(use: str):
    options: dict[str, dict[str, Any]] = {
        "prune.magnitude": {"sparsity": 0.5},
        "prune.structured": {"ffn": 0.5},
        "inherit": {"layers": "first:1"},
        "lowrank.svd": {"ratio": 0.5},
    }
    context = Context(data={"train": texts(WORDS), "calibration": texts(WORDS)})
    with pytest.raises(ZooError, match=rf"^{use}: {BAD}. Load the weights anew or repair them.$"):
        stages.apply(poisoned(), use, options.get(use, {}), context)


def test_damaged_weights_are_not_saved_run_or_measured(tmp_path: Path):
    model = poisoned()
    with pytest.raises(ZooError, match=f"^llama cannot be saved: {BAD}"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZooError, match=f"^llama cannot be run: {BAD}"):
        model.generate("w5 w6")
    with pytest.raises(ZooError, match=f"^perplexity of llama: {BAD}"):
        figures.measure("perplexity", model, texts(WORDS), options={})


def test_weights_changed_after_a_run_are_looked_at_again():
    model = small("llama")
    assert model.generate("w5 w6", max_new_tokens=2)
    with torch.no_grad():
        model.tensors()[UP][3, 5] = math.nan
    with pytest.raises(ZooError, match=BAD):
        model.generate("w5 w6")


def test_all_damaged_tensors_are_counted_and_masks_left_alone():
    model = poisoned()
    with torch.no_grad():
        model.tensors()["lm_head.weight"].fill_(math.inf)
    model.module.register_buffer("mask", torch.full((2, 2), -math.inf))
    assert damage(model).endswith(
        "holds 1 value that is not finite, the first (nan) at [3, 5]; 1 more tensors hold some"
    )
    model.module.get_buffer("mask")[0, 0] = math.inf
    assert damage(model).startswith("mask (2, 2) holds 4 values that are not finite, the first (inf) at [0, 0]; 2 more")


def test_a_teacher_is_looked_at():
    context = Context(data={"train": texts(WORDS)}, load=lambda _: poisoned())
    with pytest.raises(ZooError, match=f"^distill: the teacher llama: {BAD}"):
        stages.apply(small("llama"), "distill", STEP, context)


def test_a_value_too_large_for_the_stored_dtype_is_named():
    model = replace(small("llama"), stored="float16")
    with torch.no_grad():
        model.tensors()["model.layers.0.mlp.up_proj.weight"][0, 0] = -1e5
    with pytest.raises(
        ZooError,
        match=r"^model.layers.0.mlp.up_proj.weight holds 1e\+05, which is too large for float16. Store the model in another: stored = \"float32\"",
    ):
        stages.apply(model, "share.ffn", {"start": "first", "target": "language"})
    with pytest.raises(ZooError, match="too large for float16"):
        model.round()


def test_overflow_on_the_way_names_the_layer_and_the_prompt():
    model = small("llama")
    with torch.no_grad():
        model.tensors()[UP].fill_(3e38)
    with pytest.raises(
        ZooError,
        match=r"^llama gives nan or infinity after 2 tokens: its weights are finite, and the first layer whose output is not is "
        r"model.layers.1.mlp.up_proj \(in float32\).$",
    ):
        model.generate("w5 w6")
    with pytest.raises(
        ZooError, match=r"^llama gives nan or infinity for texts:1: its weights are finite, and the first layer"
    ):
        figures.measure("perplexity", model, texts("", WORDS), options={})


def test_minus_infinity_as_a_logit_means_a_token_that_cannot_come():
    model = small("llama")
    plain = model.module.forward

    def masked(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits[..., 5] = -math.inf
        return out

    model.module.forward = masked  # type: ignore[method-assign]
    assert "w5" not in model.generate("w5 w6", max_new_tokens=20).split()


def test_outputs_are_named_one_by_one():
    model = small("llama")
    bad = torch.tensor([[1.0, math.nan], [1, 1], [math.inf, 1]])
    with pytest.raises(ZooError, match=r"^llama gives nan or infinity for a, c: its weights are finite"):
        require_finite_outputs(model, bad, {"input_ids": torch.tensor([[5]])}, of=["a", "b", "c"])
    assert cause(poisoned()).startswith(UP)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["train", "distill"])
def test_a_loss_that_is_no_number_is_named_with_step_and_sample(use: str):
    model = small("gpt2")
    context = Context(data={"train": texts(WORDS, WORDS)}, load=lambda _: small("gpt2"))
    loss = {"train": "cross-entropy", "distill": "kl"}[use]
    with pytest.raises(
        ZooError,
        match=rf"^{use}: the loss is nan \({loss} nan\) at step 1, on texts:\d.*; its weights are finite, and the first layer",
    ):
        stages.apply(model, use, {**STEP, "lr": 1e30}, context)


def test_the_loss_of_the_sum_that_is_to_blame_and_the_teacher_are_named():
    teacher = small("llama")
    with torch.no_grad():
        teacher.tensors()["model.layers.0.mlp.down_proj.weight"].fill_(1e38)
    context = Context(data={"train": texts(WORDS)}, load=lambda _: teacher)
    losses = [{"use": "cross-entropy"}, {"use": "hidden"}]
    with pytest.raises(
        ZooError,
        match=r"^distill: the loss is nan \(cross-entropy \d.*, hidden nan\) at step 0, on texts:0; of the teacher llama, its weights are",
    ):
        stages.apply(small("llama"), "distill", {**STEP, "loss": losses}, context)


def test_only_the_guilty_sample_is_named():
    model = small("gpt-neox")
    with torch.no_grad():
        model.tensors()["gpt_neox.embed_in.weight"][90] = 3e38
    data = texts(*(f"{'w90 ' if number == 2 else 'w5 '}" * 17 for number in range(4)))
    context = Context(data={"train": data}, load=lambda _: small("llama"))
    with pytest.raises(ZooError, match=r"^train: .* at step 0, on .*texts:2") as error:
        stages.apply(model, "train", {**STEP, "batch": 4}, context)
    assert "texts:0" not in str(error.value)


def test_an_infinite_gradient_stops_the_step_that_makes_it():
    class Steep(RowLoss):
        needs_teacher: ClassVar[bool] = False

        def __call__(
            self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, rows: Rows, options: LossOptions
        ) -> torch.Tensor:
            return (student_NV * 0).abs().sqrt().sum(-1) + 1  # the slope of a root at 0

    from zoo_compress.train.loop import fit
    from zoo_compress.train.objective import Objective
    from zoo_compress.train.options import TrainingOptions

    model = small("llama")
    before = {name: tensor.detach().clone() for name, tensor in model.tensors().items()}
    windows = model.family.windows(model, texts(WORDS), length=16)
    with pytest.raises(
        ZooError, match=r"^train: the gradient is (nan|inf), though the loss is .* at step 0, on texts:0"
    ):
        objective = Objective(model, None, [("steep", Steep(), LossOptions())])
        fit(model, objective, windows, options=TrainingOptions(**STEP), context=Context(), label="train")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "values"),
    [
        ("lowrank.svd", {"ratio": 0.5, "samples": 4, "length": 32, "batch": 1}),
        ("prune.wanda", {"sparsity": 0.5, "samples": 4, "length": 32, "batch": 1}),
        ("prune.sparsegpt", {"sparsity": 0.5, "samples": 4, "length": 32, "batch": 1}),
        ("inherit", {"layers": "influence:1", "samples": 4, "length": 32, "batch": 1, "keep_ends": False}),
        ("inherit", {"layers": "greedy:1", "samples": 4, "length": 32, "batch": 1, "keep_ends": False}),
        ("prune.structured", {"ffn": 0.5, "importance": "activation", "samples": 4, "length": 32}),
    ],
)
def test_calibration_names_module_and_samples(use: str, values: dict[str, Any]):
    model = small("llama")
    with torch.no_grad():
        model.tensors()["model.layers.0.mlp.up_proj.weight"].fill_(3e38)
    context = Context(data={"calibration": texts(WORDS, WORDS)})
    with pytest.raises(
        ZooError,
        match=r"(?i)on texts:0.*model.layers.0.* nan or infinity: its weights are finite, and the first layer whose output is not is "
        r"model.layers.0.mlp.up_proj",
    ):
        stages.apply(model, use, values, context)


def test_windows_say_which_records_they_hold():
    model = small("llama")
    windows = model.family.windows(model, texts("w5 " * 20, "", "w6 " * 9, "w7 " * 40), length=16)
    assert [window_origin(windows, i) for i in range(len(windows))] == [
        "texts:0",
        "texts:0 to texts:3",
        "texts:3",
        "texts:3",
    ]
    assert window_origin([{}], 0) == "window 0"


# --- data and requests ------------------------------------------------------------------------------------------------


def test_a_text_that_is_no_unicode_is_refused_by_record(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "half \\ud800"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: the text holds half a character at position 5"):
        zoo.data.open.open_data(str(tmp_path / "a.jsonl"))
    with pytest.raises(RequestError, match="holds half a character at position"):
        small("llama").generate("w5 \udcff")


def test_a_tokenizer_of_another_model_is_found_before_it_reads_beyond_the_table():
    model = replace(small("llama", vocab_size=40), processor=stages.tokenizer())
    for work in (
        lambda: model.generate("w5 w77"),
        lambda: figures.measure("perplexity", model, texts("w5", "w5 w77"), options={}),
        lambda: model.family.windows(model, texts("w5 " * 40, "w77 " * 40), length=16),
    ):
        with pytest.raises(
            RequestError,
            match=r"Token 77 \('w77'\) is none of the 40 that llama has: its tokenizer is that of another model",
        ):
            work()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 10**400},
        {"temperature": -(10**400)},
        {"stop": 5},
        {"stop": None},
        {"seed": 10**30},
        {"seed": 0.5},
    ],
)
def test_options_beyond_any_number_are_refused(options: dict[str, Any]):
    model = small("llama")
    with pytest.raises(RequestError):
        model.generate("w5 w6", **options)


def test_a_figure_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def measure(self, model: Any, data: Any, *, options: Any) -> dict[str, Any]:
            return {"accuracy": {"value": 1.0, "by": {"a": {"low": math.nan}}}}

    monkeypatch.setattr(figures, "resolve", lambda kind, name: Broken())
    with pytest.raises(ZooError, match=r"^broken of llama: accuracy.by.a.low is nan: "):
        figures.measure("broken", small("llama"), texts(WORDS), options={})
    with pytest.raises(DataError, match="broken: 'texts' holds no records"):
        figures.measure("broken", small("llama"), texts(), options={})
