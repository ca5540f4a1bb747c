"""Image models without classes: vectors before the head, learnt of and measured without labels, folders as timm writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, Refused, RequestError
from zoo.evaluation.figures import measure
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.model import Model

VIT = "timm:vit_tiny_patch16_224?num_classes=0&img_size=32&depth=2"


@pytest.fixture(scope="module")
def vit() -> Model:
    return zoo.load(VIT, weights="random")


def pictures(count: int = 6) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


def data() -> Dataset:
    return Dataset("pictures", [Sample({"image": picture}, f"pictures:{i}") for i, picture in enumerate(pictures())])


def test_vectors_are_timms_own_features(vit: Model) -> None:
    import timm

    assert vit.spec.task == "embedding"
    images = [Image.fromarray(picture) for picture in pictures(3)]
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2).eval()
    plain.load_state_dict(vit.module.state_dict())
    family: Any = vit.family
    with torch.no_grad():
        features = plain(torch.stack([family.preprocess(vit, image) for image in images])).numpy()
    np.testing.assert_allclose(vit.generate(images=images), features, atol=1e-5)
    np.testing.assert_allclose(vit.generate(images[0]), features[0], atol=1e-5)
    lines = "".join(vit.generate(images=images, stream=True)).splitlines()
    np.testing.assert_allclose([json.loads(line) for line in lines], features, atol=1e-5)


def test_a_folder_without_classes_comes_back_as_one(vit: Model, tmp_path: Path) -> None:
    saved = vit.save(tmp_path / "vit")
    (saved / "zoo.json").unlink()
    from safetensors.torch import load_file, save_file

    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors", metadata={"format": "pt"})
    again = zoo.load(saved)
    assert again.spec.task == "embedding"
    assert np.array_equal(again.generate(pictures(1)), vit.generate(pictures(1)))
    assert zoo.load("timm:vit_tiny_patch16_224?num_classes=4", device="meta").spec.task == "image-classification"


def test_images_without_labels_are_all_that_is_needed(vit: Model) -> None:
    model, context = vit.copy(), Context(data={"train": data(), "calibration": data()}, load=lambda _: vit.copy())
    for use, options in (
        ("prune.structured", {"ffn": 0.5, "importance": "activation", "target": "vision"}),
        ("distill", {"steps": 3, "batch": 3, "warmup": 1}),
    ):
        stage = registry.compressor(use)
        model.apply(stage, stage.Options(**options), context)
    assert list(context.curves) == ["loss", "cosine", "rkd"]
    figures = measure("similarity", model, data(), options={})
    assert 0 < figures["cosine_to_original"]["value"] < 1 and figures["cosine_to_original"]["n"] == 6
    shown = task_of(model).samples(model, [], data())
    assert shown[0]["image"].startswith("data:image/png") and shown[0]["output"].count("pictures:") == 3


def test_what_does_not_go_together_is_refused(vit: Model) -> None:
    distill = registry.compressor("distill")
    classes = zoo.load("timm:vit_tiny_patch16_224?num_classes=4&img_size=32&depth=2", device="meta")
    with pytest.raises(Refused, match=r"distill compares vectors, and the teacher .* is of task image-classification"):
        distill.check_teacher(vit, classes)
    with pytest.raises(Refused, match="train has no loss of its own for embedding models"):
        train = registry.compressor("train")
        train.check(vit, vit.state(), train.Options())
    with pytest.raises(RequestError, match="'count' is not an option of generate"):
        vit.generate(images=pictures(1), count=2)
    with pytest.raises(DataError, match="no field 'image'"):
        registry.evaluator("similarity").check(vit, Dataset("texts", [Sample({"text": "a"}, "texts:0")]))
    with pytest.raises(RequestError, match="without classes and without global_pool gives a map of features"):
        zoo.load("timm:resnet10t?num_classes=0&global_pool=", device="meta")
