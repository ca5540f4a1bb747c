"""The judge, agreement with the prompt, and the Fréchet distance."""

from __future__ import annotations

import pipelines
import pytest
import torch
from zoo_snapgen.evaluators import Frechet, PromptAgreement, RealImages, VelocityError, frechet, spread
from zoo_snapgen.judge import look, train

from zoo.data.dataset import Dataset, Sample
from zoo.data.open import open_data
from zoo.errors import DataError
from zoo.testing import random_state_kept


def test_distance_of_normal_clouds_is_that_of_their_means_and_spreads():
    """For diagonal covariances the distance is |m1 - m2|^2 + sum of (s1 - s2)^2."""
    base = torch.cat([s * torch.eye(3, dtype=torch.float64) for s in (1.0, -1.0)])  # covariance 2/5 I, mean 0
    one, other = (
        base * torch.tensor([1.0, 2.0, 3.0]),
        base * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([0.0, 3.0, 0.0]),
    )
    assert frechet(one, other) == pytest.approx(9 + 0.4 * (1 + 0 + 4))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_judge_reads_the_held_out_digits():
    data = open_data("digits-captions:test")
    seen = look([sample.fields["image"] for sample in data])[1].tolist()
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    right = sum(digits[number] == sample.fields["digit"] for number, sample in zip(seen, data, strict=True))
    assert right >= 0.99 * len(data)


def test_training_the_judge_follows_from_the_seed():
    data = open_data("digits-captions:train[:40]")
    images = [sample.fields["image"] for sample in data]
    with random_state_kept("training the judge"):
        one, other = (train(images, [0, 1] * 20, steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_agreement_names_digits_and_confusions():
    with random_state_kept("prompt-agreement"):
        found = PromptAgreement().measure(
            pipelines.snapgen(), open_data("digits-captions:test[:30]"), options={"images": 6, "steps": 1, "batch": 4}
        )
    agreement = found["prompt_agreement"]
    assert agreement["low"] <= agreement["value"] <= agreement["high"]
    assert (agreement["unit"], agreement["better"]) == ("%", "higher")
    assert sum(sum(row) for row in agreement["confusion"]["counts"]) == 6
    assert sum(group["n"] for group in agreement["by"].values()) == 6
    assert agreement["judge"]["value"] > 95


def test_frechet_of_noise_is_far_above_that_of_real_images():
    found = Frechet().measure(
        pipelines.snapgen(), open_data("digits-captions:test"), options={"images": 24, "steps": 1}
    )
    assert found["frechet"]["value"] > 3 * found["frechet"]["real"]
    assert found["frechet"]["low"] <= found["frechet"]["value"] <= found["frechet"]["high"]
    few = Frechet().measure(pipelines.snapgen(), open_data("digits-captions:test"), options={"images": 4, "steps": 1})
    assert few["frechet"]["low"] < few["frechet"]["high"] and few["frechet"]["n"] == 4  # one image of each digit


def test_velocity_error_is_the_training_loss_on_fixed_draws():
    """A fresh UNet predicts its bias alone, so the error is that of guessing it for eps - z: about 1 + 1."""
    model, data = pipelines.snapgen(), open_data("digits-captions:test[:40]")
    with torch.no_grad():
        for parameter in model.module.unet.conv_out.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    with random_state_kept("velocity-error"):
        found = VelocityError().measure(model, data, options={"batch": 16})["velocity_error"]
    assert found["value"] == pytest.approx(2, abs=0.1)
    assert found["low"] < found["value"] < found["high"]
    assert VelocityError().measure(model, data, options={"batch": 16})["velocity_error"] == found


def test_one_image_has_an_error_without_interval_and_no_distance():
    model, one = pipelines.snapgen(), open_data("digits-captions:test[:1]")
    assert VelocityError().measure(model, one, options={})["velocity_error"].keys() == {"value", "n", "of", "better"}
    for evaluator, options in ((Frechet(), {"images": 2, "steps": 1}), (RealImages(), {})):
        with pytest.raises(DataError, match="holds one image; the spread of images"):
            evaluator.measure(model, one, options=options)


def test_real_images_are_the_figures_to_reach():
    found = RealImages().measure(None, open_data("digits-captions:test"), options={"images": 200})
    assert found["prompt_agreement"]["value"] >= 99
    assert 0 < found["frechet"]["value"] < 5


def test_data_without_digits_is_refused():
    for data, match in (
        (None, "needs test data"),
        (Dataset("texts", [Sample({"text": "a"}, "texts:1")]), 'texts:1: .* needs an "image"'),
    ):
        with pytest.raises(DataError, match=match):
            PromptAgreement().measure(pipelines.snapgen(), data, options={})


def test_records_are_spread_evenly():
    samples = [Sample({"text": str(i)}, str(i)) for i in range(10)]
    assert [one.where for one in spread(samples, 5)] == ["0", "2", "4", "6", "8"]
    assert [one.where for one in spread(samples[:2], 4)] == ["0", "0", "1", "1"]
