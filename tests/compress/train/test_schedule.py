"""The warmup-stable-decay schedule: MiniCPM's form (2404.06395, section 4), and transformers' as a second opinion."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from twins import TWINS, twin_model
from zoo_compress.train.loop import matrices, rate
from zoo_compress.train.options import TrainingOptions
from zoo_compress.train.schedules import wsd

import zoo

pytestmark = pytest.mark.quick

TIMM = ("timm:vit_tiny_patch16_224", "timm:resnet10t", "timm:convnext_atto")
SHAPES = ("linear", "cosine", "1-sqrt", "exponential")


def test_the_golden_values_of_the_exponential_form():
    """Warm-up 2, decay from step 6, half-life 3."""
    golden = [0, 0.5, 1, 1, 1, 1, 1, 0.7937, 0.63, 0.5, 0.3969, 0.315, 0.25]
    values = [wsd(s, warmup=2, total=12, decay=6, shape="exponential", half_life=3) for s in range(13)]
    assert values == pytest.approx(golden, abs=5e-5)


def test_the_golden_values_of_the_linear_form_without_their_floor():
    """transformers lifts the whole curve, warm-up too, onto a floor of 0.1; ours starts and ends at 0."""
    golden = [0.1, 0.55, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1]
    values = [wsd(s, warmup=2, total=10, decay=4, shape="linear") for s in range(12)]
    assert [0.1 + 0.9 * value for value in values] == pytest.approx(golden)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_it_is_transformers_schedule(shape):
    from transformers import get_wsd_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_wsd_schedule(
        optimizer, num_warmup_steps=3, num_decay_steps=7, num_training_steps=20, decay_type=shape
    )
    for step in range(24):
        assert wsd(step, warmup=3, total=20, decay=7, shape=shape) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_has_no_jump_at_either_end_of_the_stable_part(shape):
    """Over a long run neighbouring steps differ little: least of all may warm-up or decay begin with a jump."""
    total, warmup, decay = 100_000, 10_000, 30_000
    options = {"warmup": warmup, "total": total, "decay": decay, "shape": shape, "half_life": 5000}
    for step in (warmup, total - decay):
        assert abs(wsd(step, **options) - wsd(step - 1, **options)) <= 1e-4
        assert abs(wsd(step + 1, **options) - wsd(step, **options)) <= 0.006  # 1-sqrt falls steepest at its start


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 80), st.sampled_from(SHAPES))
def test_it_rises_then_stays_then_falls(warmup, stable, decay, shape):
    total = warmup + stable + decay
    values = [wsd(s, warmup=warmup, total=total, decay=decay, shape=shape, half_life=7) for s in range(total + 1)]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] == 0 and values[warmup : warmup + stable + 1] == [1.0] * (stable + 1)
    assert all(a < b for a, b in pairwise(values[: warmup + 1]))
    falling = values[warmup + stable :]
    assert all(a > b for a, b in pairwise(falling))
    if shape != "exponential":
        assert falling[-1] == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 40), st.integers(0, 100))
def test_the_half_life_is_exact(half_life, steps):
    def value(step):
        return wsd(step, warmup=0, total=200, decay=200, shape="exponential", half_life=half_life)

    assert value(steps + half_life) == pytest.approx(value(steps) / 2, rel=1e-12)


def test_the_stable_part_does_not_depend_on_the_length_of_the_run():
    short, long = ([wsd(s, warmup=5, total=total, decay=10) for s in range(41)] for total in (50, 5000))
    assert short == long


@pytest.mark.parametrize("shape", SHAPES)
def test_without_decay_it_stays_at_the_peak(shape):
    assert wsd(99, warmup=5, total=100, decay=0, shape=shape, half_life=1) == 1.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_every_step_trains(shape, steps, decay):
    options = TrainingOptions(steps=steps, warmup=3, decay=decay, decay_shape=shape, lr=1.0)
    rates = [rate(step, options) for step in range(steps)]
    assert all(0 < value <= 1 for value in rates) and (steps == 1 or max(rates) == 1)
    if steps == 200 and decay:
        assert rates[-1] < 0.2 and all(a >= b for a, b in pairwise(rates[2:]))
    if shape == "linear" and decay == 1.0 and steps == 10:
        assert rates[3:] == pytest.approx([7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.mark.parametrize("name", [*TWINS, "tiny-vlm", "tiny-t2i", *TIMM])
def test_weight_decay_falls_on_the_weights_of_layers_alone(name):
    """Of all that has two axes or more only tables, which a tied head may share, and learnt tokens are left out."""
    model = twin_model(name, device="meta") if name in TWINS else zoo.load(name, device="meta")
    decayed = matrices(model.module, model.anatomy)
    named = dict(model.module.named_parameters())
    assert not [path for path, parameter in named.items() if id(parameter) in decayed and parameter.ndim < 2]
    left = {path for path, parameter in named.items() if id(parameter) not in decayed and parameter.ndim >= 2}
    tables = r"(embed_tokens|embed_in|embed_positions|\w+_embeddings?|wte|wpe)\.weight$|(cls_token|pos_embed)$"
    assert left == {path for path in named if re.search(tables, path)}


def test_gains_and_biases_of_two_axes_are_no_matrices():
    class Gained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gain, self.table = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 4)), nn.Embedding(3, 4)

    module = Gained()
    assert matrices(module) == {id(module.layer.weight)}
