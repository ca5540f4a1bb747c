"""The start stays instant: what the light commands import, counted in fresh processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outsiders import MODEL, install, python

HEAVY = {"torch", "transformers", "diffusers", "timm", "pydantic", "numpy", "huggingface_hub", "xxhash"}
BUDGET = 300  # modules, the interpreter's own included; 63 to 235 when this was written

# Runs a command, then writes the names of all imported modules to stderr.
COUNTED = """
import sys
from zoo.cli import main
code = main(sys.argv[1:])
import json
print("MODULES" + json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


# The same, and before that the places of all files that were opened.
WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
""" + COUNTED.replace("import json\n", 'print(*opened, sep="\\t", file=sys.stderr)\nimport json\n')

COMMAND = """
[[command]]
name = "{name}"
summary = "Made up for a test"
"""


def modules_of(*args: str, **options) -> list[str]:
    done = python("-c", COUNTED, *args, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.rpartition("MODULES")[2])


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "list",
        "list --json",
        "info tiny-code",
        "info tiny-code --json",
        "plugins",
        "plugins --json",
        "plugins info zoo_compress",
        "--version",
        "list --max-params 1B --modality text",
        "run --help",
    ],
)
def test_light_commands_import_nothing_heavy(command: str):
    modules = modules_of(*command.split())
    assert not HEAVY & {name.partition(".")[0] for name in modules}
    assert len(modules) <= BUDGET


def test_help_imports_no_plugin():
    tops = {name.partition(".")[0] for name in modules_of("--help")}
    assert not {"zoo_compress", "zoo_slm", "pluggy", "rich"} & tops


def test_help_on_what_can_be_asked_imports_no_plugin_and_no_family():
    modules = modules_of("run", "--help")
    assert not {"zoo_compress", "zoo_slm", "rich"} & {name.partition(".")[0] for name in modules}
    assert not [name for name in modules if name.startswith("zoo.family.")]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny-code", {"text"}),
        ("tiny-vlm", {"text", "vision"}),
        ("tiny-t2i", {"diffusion"}),
        ("timm:resnet18", {"text", "vision"}),
        ("bebeshka", {"text"}),
    ],
)
def test_help_on_a_model_imports_the_file_of_its_options_alone(model: str, options: set[str]):
    """That of images builds on that of text."""
    modules = modules_of("run", model, "--help")
    tops = {name.partition(".")[0] for name in modules}
    assert not (HEAVY - {"pydantic"}) & tops
    assert not {"zoo_compress", "zoo_slm", "zoo_h2ovl", "zoo_snapgen", "zoo_timm"} & tops
    files = {name for name in modules if name.startswith("zoo.family.")}
    assert files == {"zoo.family.options"} | {
        f"zoo.family.{room}{file}" for room in options for file in ("", ".options")
    }


def test_import_zoo_is_light():
    done = python("-c", "import sys, zoo; print(len(sys.modules)); print(*sys.modules)")
    count, names = done.stdout.splitlines()
    assert int(count) <= 100
    assert not HEAVY & {name.partition(".")[0] for name in names.split()}


@pytest.mark.parametrize("command", ["list", "--help", "info tiny-code"])
def test_plugins_cost_the_start_three_small_files_each_and_no_module(tmp_path: Path, command: str):
    before = modules_of(*command.split(), site=tmp_path)
    for i in range(200):
        registry = MODEL.format(name=f"made-{i}", params=1) + COMMAND.format(name=f"make-{i}")
        install(tmp_path, f"out_{i}", registry=registry, code="import time; time.sleep(100)")
    done = python("-c", WATCHED, *command.split(), site=tmp_path)
    assert done.returncode == 0 and json.loads(done.stderr.rpartition("MODULES")[2]) == before
    opened = [place for place in done.stderr.splitlines()[0].split("\t") if place.startswith(str(tmp_path))]
    each = ["out_{}-1.0.dist-info/METADATA", "out_{}-1.0.dist-info/entry_points.txt", "out_{}/registry.toml"]
    assert sorted(opened) == sorted(str(tmp_path / place.format(i)) for i in range(200) for place in each)


def test_the_public_surface_is_one_list():
    code = (
        "import zoo; print([name for name in zoo.__all__ if getattr(zoo, name, None) is None]); print(sorted(dir(zoo)))"
    )
    missing, names = python("-c", code).stdout.splitlines()
    assert missing == "[]"
    assert "load" in names


def test_an_unknown_attribute_is_an_attribute_error():
    done = python("-c", "import zoo; zoo.lod")
    assert done.stderr.strip().splitlines()[-1].startswith("AttributeError: module 'zoo' has no attribute 'lod'")
