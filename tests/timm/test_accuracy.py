"""Accuracy: the share, its interval, its groups, and the evaluator for classifiers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.evaluation.shares import accuracy

pytestmark = pytest.mark.quick


def test_groups_and_confusions_are_counted():
    true, said = ["1", "1", "2", "7", "7"], ["1", "7", "2", "1", "x"]
    found = accuracy(true, said, groups=["a", "a", "b", "b", "b"], order=["1", "2", "7"])
    assert found["value"] == 40 and found["unit"] == "%" and found["better"] == "higher"
    assert found["confusion"] == {
        "true": ["1", "2", "7"],
        "predicted": ["1", "2", "7", "x"],
        "counts": [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]],
    }
    assert {name: (part["value"], part["n"]) for name, part in found["by"].items()} == {
        "a": (50, 2),
        "b": (pytest.approx(100 / 3), 3),
    }
    many = [str(i) for i in range(1000)]
    assert not {"by", "confusion"} & set(accuracy(many, many, groups=many))


def test_the_evaluator_counts_what_the_module_says():
    model = zoo.load(
        "timm:vit_tiny_patch16_224?num_classes=4&img_size=16&patch_size=8&depth=1&embed_dim=24&num_heads=3",
        weights="random",
    )
    images = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
    data = Dataset("x", [Sample({"image": one, "label": i % 4, "text": ""}, f"x:{i}") for i, one in enumerate(images)])
    items = model.family.windows(model, data, length=1)
    with torch.no_grad():
        said = [int(model.module(item["images"][None]).argmax()) for item in items]
    found = registry.evaluator("accuracy").measure(model, data, options={"batch": 8})["accuracy"]
    assert found["value"] == pytest.approx(100 * sum(a == i % 4 for i, a in enumerate(said)) / 21)
    assert sum(map(sum, found["confusion"]["counts"])) == 21 and found["by"]["0"]["n"] == 6
    some = registry.evaluator("accuracy").measure(model, data, options={"samples": 6})["accuracy"]
    assert sum(map(sum, some["confusion"]["counts"])) == 6


def test_what_cannot_be_measured_is_said():
    evaluator = registry.evaluator("accuracy")
    model = zoo.load("timm:resnet10t?num_classes=2", device="meta")
    with pytest.raises(DataError, match="accuracy needs test data"):
        evaluator.measure(model, None, options={})
    text = zoo.load("tiny-code", device="meta")
    with pytest.raises(RequestError, match="accuracy is for image classifiers; tiny-code is text"):
        evaluator.measure(text, Dataset("x", []), options={})
