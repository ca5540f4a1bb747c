"""Folders as ImageNet comes: by synset, by common name, by number; checked in the plan against timm's own lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo
from zoo_compress import Recipe
from zoo_compress.recipe.planner import plan
from zoo_compress.recipe.runner import run
from zoo_timm.evaluators import Accuracy

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError
from zoo.family.vision.labels import label_of, plain_name
from zoo.model.model import Model

IMAGENET = "timm:resnet10t.c3_in1k"


@pytest.fixture(scope="module")
def imagenet() -> Model:
    return zoo.load(IMAGENET, device="meta")


def folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for copy in range(2):
            Image.new("RGB", (40, 40), (20 * number, 90 * copy, 0)).save(root / name / f"{copy}.png")
    return root


def target(model: Model, label: object) -> int:
    sample = Sample({"image": 0, "label": label, "text": str(label)}, "x:1")
    return label_of(sample, model.family.labels(model), model.family.aliases(model))


@pytest.mark.quick
def test_every_synset_and_label_of_imagenet_is_its_class(imagenet: Model):
    info, names = ImageNetInfo("imagenet-1k"), imagenet.family.labels(imagenet)
    assert len(names) == len(set(names)) == 1000
    aliases = imagenet.family.aliases(imagenet)
    for number in range(1000):
        synset = info.index_to_label_name(number)
        for label in (synset, synset.upper(), names[number], str(number)):
            sample = Sample({"image": 0, "label": label}, "x:1")
            assert label_of(sample, names, aliases) == number


@pytest.mark.quick
@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("great_white_shark", 2),
        ("Great White Shark", 2),
        ("golden_retriever", 207),
        ("black-and-tan coonhound", 165),
        ("maillot", 638),
        ("tank suit", 639),
    ],
)
def test_common_names_are_taken_however_a_folder_writes_them(imagenet: Model, label: str, number: int):
    assert target(imagenet, label) == number


def test_a_name_of_several_classes_is_refused(imagenet: Model):
    with pytest.raises(DataError) as caught:
        target(imagenet, "crane")
    assert str(caught.value) == (
        "x:1: 'crane' is a name of several classes: write 'crane (n02012849)' or 'crane (n03126707)', or a number."
    )
    assert [target(imagenet, f"crane (n0{number})") for number in (2012849, 3126707)] == [134, 517]
    for wrong in ("n99999999", "tenhc", "-1", "1000", ""):
        with pytest.raises(DataError, match="x:1: "):
            target(imagenet, wrong)


@pytest.mark.parametrize(
    "name", ["timm:convnext_tiny.fb_in22k_ft_in1k_384", "timm:convnext_tiny.in12k", "timm:resnet18"]
)
def test_models_of_all_imagenets_know_their_synsets(name: str):
    model = zoo.load(name, device="meta")
    classes = model.module.num_classes
    info = ImageNetInfo({1000: "imagenet-1k", 11821: "imagenet-12k"}[classes])
    for number in (0, 17, classes - 1):
        assert target(model, info.index_to_label_name(number)) == number


def test_other_models_have_no_synsets():
    model = zoo.load("timm:resnet10t?num_classes=10", device="meta")
    assert target(model, "3") == target(model, 3) == target(model, np.int64(3)) == 3
    with pytest.raises(DataError, match="none of the 10 classes"):
        target(model, "n01440764")
    with pytest.raises(DataError, match="none of the 10 classes"):
        target(model, "-1")


def test_names_are_compared_without_case_and_underscores():
    assert plain_name("Great_White  Shark") == plain_name("great-white shark") == "great white shark"
    assert plain_name("-1") == "-1" and plain_name("_x") == "_x"


# --- from the plan to the result --------------------------------------------------------------------------------------

RECIPE = f"""
[recipe]
name = "seen"
[model]
name = "{IMAGENET}"
weights = "random"
[data]
train = "images:train"
test = "images:val"
[[stage]]
use = "train"
steps = 1
batch = 2
warmup = 0
[evaluate]
tasks = ["accuracy"]
speed = false
"""


def write(folder: Path, train: tuple[str, ...], test: tuple[str, ...]) -> Recipe:
    folders(folder / "images/train", *train)
    folders(folder / "images/val", *test)
    (folder / "recipe.toml").write_text(RECIPE)
    return Recipe.load(folder / "recipe.toml")


@pytest.mark.parametrize("bad", ["train", "val"])
def test_a_folder_of_no_class_is_refused_in_the_plan(tmp_path: Path, bad: str):
    good, wrong = ("n01440764", "goldfish"), ("n01440764", "goldfihs")
    recipe = write(tmp_path, wrong if bad == "train" else good, wrong if bad == "val" else good)
    with pytest.raises(DataError) as caught:
        plan(recipe)
    assert f"images/{bad}/goldfihs/0.png: 'goldfihs' is none of the 1000 classes." in str(caught.value)
    assert "recipe.toml, line " in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_synsets_is_trained_and_measured(tmp_path: Path):
    recipe = write(tmp_path, ("n01440764", "goldfish"), ("n01443537", "tench"))
    result = run(recipe, out=tmp_path / "out")
    groups = result.results["stages"][-1]["metrics"]["accuracy"]["by"]
    assert set(groups) == {"tench, Tinca tinca", "goldfish, Carassius auratus"}


def test_accuracy_tells_classes_of_one_name_apart(imagenet: Model):
    data = Dataset("x", [Sample({"image": 0, "label": 134, "text": ""}, "x:1")])
    Accuracy().check(imagenet, data)
    assert imagenet.family.labels(imagenet)[134] != imagenet.family.labels(imagenet)[517]
