"""`zoo run` with images going in and coming out; the painter is a plugin from outside, as anybody would write one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from outsiders import install, python, zoo
from PIL import Image

REGISTRY = """
[[model]]
name = "painter"
plugin = "out_painter"
family = "painter"
modality = "paint"
task = "painting"
license = "MIT"
params = 2
summary = "Paints one colour"

[[family]]
name = "painter"
modality = "paint"
summary = "Paints one colour"

[[evaluator]]
name = "colour"
summary = "How red the paint is"

[[data]]
name = "walls"
summary = "Walls to paint"
"""

CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_families(register):
    register("painter", "out_painter.painter:Painter")

@hookimpl
def register_evaluators(register):
    register("colour", "out_painter.painter:Colour")

@hookimpl
def register_data(register):
    register("walls", "out_painter.painter:Walls")
"""

PAINTER = """
from zoo.anatomy import Anatomy
from zoo.data import Sample
from zoo.family import Family, Task


class Painting(Task):
    name = "painting"
    speeds = None


class Painter(Family):
    modality = "paint"
    tasks = ("painting",)
    evaluation = ("colour", "walls:test")
    takes = ("prompt", "steps", "count", "seed")
    makes = "images"

    def build(self, config, task):
        from torch import nn

        return nn.Linear(1, 1)

    def initialise(self, module):
        module.reset_parameters()

    def anatomy(self, module):
        return Anatomy()

    example = forward = windows = rows = None

    def task(self, name):
        return Painting()

    def generate(self, model, prompt, *, steps=1, count=1, seed=0):
        from PIL import Image

        return [Image.new("RGB", (6, 4), (len(prompt), steps, seed + i)) for i in range(count)]


class Colour:
    def measure(self, model, data, *, options):
        return {"redness": {"value": float(len(data)), "unit": "%", "confusion": {"true": ["a"]}, "by": {"a": {"value": 1.0}}}}


class Walls:
    splits = ("train", "test")

    def records(self, split):
        return [Sample({"text": split}, f"walls:{i}") for i in range(3)]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the plugin installed, and a saved painter in "painted"."""
    (install(tmp_path, "out_painter", registry=REGISTRY, code=CODE) / "painter.py").write_text(PAINTER)
    done = python("-c", "import zoo; zoo.load('painter', weights='random').save('painted')", site=tmp_path)
    assert (tmp_path / "painted").is_dir(), done.stderr
    return tmp_path


def test_images_are_written_where_they_were_asked_for(site: Path):
    done = zoo("run", "painted", "-p", "abc", "--steps", "7", "--seed", "9", "-o", "out.png", site=site)
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
    with Image.open(site / "out.png") as image:
        assert image.size == (6, 4) and image.getpixel((0, 0)) == (3, 7, 9)


def test_help_shows_what_a_family_takes_that_has_no_options_of_its_own(site: Path):
    done = zoo("run", "painted", "--help", site=site)
    shown = re.findall(r"^  (?:-\w, )?(--\S+)", done.stdout.partition("Options:")[2], re.MULTILINE)
    assert shown[:6] == ["--prompt", "--steps", "--count", "--seed", "--out", "--force"], done.stderr


def test_several_images_are_numbered_and_json_says_what_they_are(site: Path):
    done = zoo("run", "painted", "--count", "2", "--out", "sub/x.png", "--json", site=site, stdin="hello")
    found = json.loads(done.stdout)
    assert [file["path"] for file in found["files"]] == ["sub/x-0.png", "sub/x-1.png"]
    assert {(file["width"], file["height"]) for file in found["files"]} == {(6, 4)}
    assert found["files"][0]["bytes"] == (site / "sub/x-0.png").stat().st_size
    assert found["prompt"] == "hello" and found["count"] == 2 and found["seconds"] >= 0 and "text" not in found
    with Image.open(site / "sub/x-1.png") as image:
        assert image.getpixel((0, 0)) == (5, 1, 1)


def test_nothing_is_replaced_without_force(site: Path):
    (site / "x-1.png").write_text("mine")
    done = zoo("run", "painted", "-p", "a", "--count", "2", "-o", "x.png", site=site)
    assert (done.returncode, done.stderr) == (
        2,
        "error: x-1.png is there already; choose another --out, or pass --force to replace it.\n",
    )
    assert (site / "x-1.png").read_text() == "mine" and not (site / "x-0.png").exists()
    assert zoo("run", "painted", "-p", "a", "--count", "2", "-o", "x.png", "--force", site=site).returncode == 0
    assert (site / "x-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["-p", "a thin seven"],
            "painted makes images; say where they go: zoo run painted --prompt 'a thin seven' --out image.png",
        ),
        (
            ["-p", "a", "--temperature", "1", "-o", "x.png"],
            "painted is a paint model and takes no --temperature. It takes: --prompt, --steps, --count, --seed.",
        ),
        (["-p", "a", "--image", "x.png", "-o", "x.png"], "painted is a paint model and takes no --image. It takes: "),
        (["-p", "a", "-o", "x.jpg"], "x.jpg: images are written as PNG; name it x.png."),
        (["-p", "a", "-o", "folder.png"], "folder.png is a directory; name a file."),
        (["-p", "a", "-o", "/proc/no/x.png"], "/proc/no/x.png cannot be written: "),
        (["-o", "x.png"], "There is no prompt. Give one with --prompt TEXT, or pipe text in."),
    ],
)
def test_a_wrong_request_for_images_is_one_sentence(site: Path, args: list[str], sentence: str):
    (site / "folder.png").mkdir()
    done = zoo("run", "painted", *args, site=site)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (site / "x.png").exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["tiny-code", "-p", "x", "--steps", "3"],
            "tiny-code is a text model and takes no --steps. It takes: --prompt, --max-new-tokens, --temperature, --top-p, --seed, --stop, --count, --chat, --suffix, --file, --repo, --path.",
        ),
        (
            ["tiny-code", "-p", "x", "-o", "x.png"],
            "tiny-code makes text, which goes to stdout; leave out --out, or redirect it: > x.png",
        ),
        (
            ["timm:resnet18", "-p", "x"],
            "timm:resnet18 is a vision model and takes no --prompt. It takes: --image, --count.",
        ),
        (["timm:resnet18?x", "--image", "x.png"], "'timm:resnet18?x': 'x' is not of the form"),
    ],
)
def test_options_of_another_kind_of_model_are_refused_before_it_is_loaded(args: list[str], sentence: str):
    done = zoo("run", *args)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"error: {sentence}"), done.stderr


def test_eval_takes_what_suits_the_model(site: Path):
    done = zoo("eval", "painted", site=site)
    assert (
        done.stdout == "painted on walls:test, 3 records\nfigure      value\nredness       3 %\nredness, a    1 %\n"
    ), done.stderr
    found = json.loads(zoo("eval", "painted", "--data", "walls:train[:2]", "--json", site=site).stdout)
    assert found["data"] == "walls:train[:2]" and found["tasks"]["colour"]["redness"]["value"] == 2


def test_eval_without_data_of_its_own_says_so():
    done = zoo("eval", "timm:resnet18")
    assert (done.returncode, done.stderr) == (
        2,
        "error: timm:resnet18 comes without data to measure on; name some with --data.\n",
    )


def test_a_classifier_looks_at_images(tmp_path: Path):
    import zoo as library

    name = "timm:vit_tiny_patch16_224?num_classes=3&img_size=16&patch_size=8&depth=1&embed_dim=24&num_heads=3"
    library.load(name, weights="random").save(tmp_path / "model")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    done = zoo("run", "model", "--image", "a.png", "--count", "2", site=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and done.stdout.splitlines()[0].split()[1] == "%"
    both = zoo("run", "model", "--image", "a.png", "--image", "a.png", "--json", site=tmp_path)
    found = json.loads(both.stdout)
    assert found["images"] == ["a.png", "a.png"] and len(found["text"].split("\n\n")) == 2
    missing = zoo("run", "model", "--image", "b.png", site=tmp_path)
    assert (missing.returncode, missing.stderr) == (2, "error: b.png does not exist. Did you mean 'a.png'?\n")
    assert zoo("run", "model", site=tmp_path).stderr.startswith("error: timm:vit_tiny")
    info = json.loads(zoo("info", "model", "--json", site=tmp_path).stdout)
    assert info["modality"] == "vision"
    (tmp_path / "model" / "zoo.json").unlink()
    info = json.loads(zoo("info", "model", "--json", site=tmp_path).stdout)
    assert (info["family"], info["modality"], info["task"]) == ("timm", "vision", "image-classification")
