"""The options of `zoo run`: declared without code, checked by a class of the family, which Python asks too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outsiders import install, python, zoo

REGISTRY = """
[[model]]
name = "echo"
plugin = "out_echo"
family = "echo"
modality = "text"
task = "echoing"
license = "MIT"
params = 2
summary = "Says what it was asked"

[[family]]
name = "echo"
modality = "text"
summary = "Says what it was asked"
options = "out_echo.options:EchoOptions"

[[option]]
name = "strength"
summary = "How strong the echo is"
value = "NUMBER"

[[option]]
name = "layers"
summary = "A layer to listen to; may be given several times"
value = "INTEGER"
several = true

[[option]]
name = "tone"
summary = "How it sounds"
value = "TONE"

[[option]]
name = "loud"
summary = "In capitals"

[[option]]
name = "force"
summary = "A flag that zoo run has itself"
"""

CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_families(register):
    register("echo", "out_echo.family:Echo")
"""

OPTIONS = """
from typing import Literal

from pydantic import Field
from zoo.family import GenerateOptions


class EchoOptions(GenerateOptions):
    "What an echo takes."

    prompt: str | None = None
    strength: float = Field(0.5, ge=0, le=1, description="How strong it is, of this model")
    layers: tuple[int, ...] = ()
    tone: Literal["warm", "cold"] = "warm"
    loud: bool = False
    seed: int = 0
    force: int = 3
    stream: bool = Field(False, description="an iterator")
"""

FAMILY = """
from zoo.anatomy import Anatomy
from zoo.family import Family, Task

from out_echo.options import EchoOptions


class Echoing(Task):
    "An echo answers."

    name = "echoing"

    def speeds(self, model, *, prefill, decode):
        return {}


class Echo(Family):
    modality = "text"
    tasks = ("echoing",)
    evaluation = ("perplexity", "stdlib:test")
    Options = EchoOptions
    needs_processor = False

    def task(self, name):
        return Echoing()

    def build(self, config, task):
        from torch import nn

        return nn.Linear(1, 1)

    def initialise(self, module):
        module.reset_parameters()

    def anatomy(self, module):
        return Anatomy()

    example = forward = windows = rows = None

    def generate(self, model, prompt=None, **options):
        self.check_options(model, options)
        options.pop("stream", None)
        text = f"{prompt} {sorted(options.items())} {self.Options(**options).strength}"
        return text.upper() if options.get("loud") else text
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed, and a saved echo in "saved"."""
    place = tmp_path_factory.mktemp("site")
    package = install(place, "out_echo", registry=REGISTRY, code=CODE)
    (package / "family.py").write_text(FAMILY)
    (package / "options.py").write_text(OPTIONS)
    done = python("-c", "import zoo; zoo.load('echo', weights='random').save('saved')", site=place)
    assert (place / "saved").is_dir(), done.stderr
    return place


def flags(*args: str, site: Path | None = None) -> dict[str, str]:
    """What a help shows: flag -> what is said of it."""
    done = zoo(*args, site=site)
    assert (done.returncode, done.stderr) == (0, "")
    shown: dict[str, str] = {}
    for line in done.stdout.partition("Options:\n")[2].splitlines():
        words = line.split()
        if line.startswith("  -"):
            flag = next(word for word in words if word.startswith("--"))
            shown[flag] = " ".join(words)
        else:
            shown[flag] += " " + " ".join(words)
    return shown


def test_help_shows_everything_that_is_declared(tmp_path: Path):
    """Those of zoo, and those of a plugin, none of whose code is run."""
    package = install(tmp_path, "out_silent", registry=REGISTRY.replace("out_echo", "out_silent"), code="")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    shown = flags("run", "--help", site=tmp_path)
    assert list(shown) == [
        *("--prompt", "--chat", "--system", "--suffix", "--file", "--repo", "--path", "--image", "--max-new-tokens"),
        *("--temperature", "--top-p", "--stop", "--steps", "--guidance", "--count", "--seed"),
        *("--strength", "--layers", "--tone", "--loud"),
        *("--out", "--force", "--weights", "--json", "--verbose", "--quiet", "--help"),
    ]
    assert shown["--prompt"].startswith("-p, --prompt TEXT The text to continue")
    assert (
        shown["--loud"] == "--loud In capitals." and shown["--strength"] == "--strength NUMBER How strong the echo is."
    )
    assert shown["--force"] == "--force Replace files that are there."


def test_help_on_a_model_shows_what_it_takes(site: Path):
    for asked in (["run", "saved", "--help"], ["run", "-h", "echo"], ["run", "--seed", "1", "echo", "-h"]):
        shown = flags(*asked, site=site)
        assert list(shown) == [
            *("--prompt", "--strength", "--layers", "--tone", "--loud", "--seed"),
            *("--weights", "--json", "--verbose", "--quiet", "--help"),
        ]
        assert shown["--strength"] == (
            "--strength NUMBER How strong it is, of this model. [at least 0; at most 1; default: 0.5]"
        )
        assert shown["--tone"] == "--tone TONE How it sounds. [one of warm, cold; default: warm]"
    code = "import sys; from zoo.cli import main; main(['run', 'saved', '--help']); print(*sys.modules)"
    modules = python("-c", code, site=site).stdout.splitlines()[-1].split()
    assert "out_echo.options" in modules and not {"torch", "out_echo.family", "out_echo.plugin"} & set(modules)


@pytest.mark.parametrize(
    ("model", "some", "none"),
    [
        (
            "tiny-code",
            ["--max-new-tokens", "--chat", "--system", "--suffix"],
            ["--image", "--steps", "--out", "--force"],
        ),
        ("tiny-vlm", ["--prompt", "--image", "--count"], ["--chat", "--system", "--suffix", "--out"]),
        ("timm:resnet18", ["--image", "--count"], ["--prompt", "--seed", "--out"]),
        ("tiny-t2i", ["--steps", "--guidance", "--out", "--force"], ["--image", "--temperature", "--system"]),
        ("bebeshka", ["--prompt", "--count"], ["--seed", "--chat", "--max-new-tokens"]),
    ],
)
def test_a_flag_is_shown_where_the_model_takes_it(model: str, some: list[str], none: list[str]):
    shown = flags("run", model, "--help")
    assert set(some) <= set(shown) and not set(none) & set(shown)


def test_options_that_are_none_are_one_sentence(tmp_path: Path):
    for number, (target, sentence) in enumerate(
        {
            "os:path": "Plugin out_{}: the options of family 'echo' (os:path) are no GenerateOptions.",
            "out_nowhere:Options": "`Options` of family 'echo' of plugin out_{} cannot be loaded from out_nowhere:Options: ModuleNotFoundError: No module named 'out_nowhere'",
        }.items()
    ):
        registry = REGISTRY.replace("out_echo.options:EchoOptions", target).replace("out_echo", f"out_{number}")
        install(tmp_path / str(number), f"out_{number}", registry=registry, code=CODE)
        done = zoo("run", "echo", "--help", site=tmp_path / str(number))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: {sentence.format(number)}\n"


def test_completion_knows_the_options_and_the_models(site: Path):
    words = {
        "zoo run tiny-c": "tiny-code",
        "zoo run saved --str": "--strength",
        "zoo run --help tiny-cod --max": "--max-new-tokens",
    }
    for line, word in words.items():
        env = {"_ZOO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = zoo(site=site, **env)
        assert done.stdout.split() == [word], done.stderr


def test_help_on_no_model_is_one_sentence():
    done = zoo("run", "tiny-cod", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No model named 'tiny-cod'. Did you mean 'tiny-code'?")


def test_a_plugin_s_option_is_given_on_the_command_line(site: Path):
    asked = ["--strength", "0.25", "--layers", "3", "--layers", "4", "--tone", "cold", "--loud", "--seed", "9"]
    done = zoo("run", "saved", "-p", "hi", *asked, "--json", site=site)
    found = json.loads(done.stdout)
    assert (found["strength"], found["layers"], found["tone"], found["loud"]) == (0.25, [3, 4], "cold", True)
    assert found["text"].startswith("HI [('LAYERS', (3, 4)),") and found["text"].endswith(" 0.25")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--strength", "2"], "--strength 2: input should be less than or equal to 1."),
        (["--strength", "much"], "--strength much: input should be a number."),
        (["--layers", "1", "--layers", "x"], "--layers 1 x: input should be a whole number."),
        (["--tone", "wam"], "--tone wam: input should be 'warm' or 'cold'. Did you mean 'warm'?"),
        (
            ["--steps", "3"],
            "saved is a text model and takes no --steps. It takes: --prompt, --strength, --layers, --tone, --loud, --seed.",
        ),
        (["--strenth", "1"], "No such option: --strenth"),
    ],
)
def test_a_wrong_option_is_one_sentence(site: Path, args: list[str], sentence: str):
    done = zoo("-q", "run", "saved", "-p", "hi", *args, site=site)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_python_asks_the_same_class(site: Path):
    code = """
import zoo
model = zoo.load("saved")
print(model.generate("hi", strength=1))
for options in ({"strength": 2}, {"strength": "1"}, {"tone": "wam"}, {"strenth": 1}):
    try:
        model.generate("hi", **options)
    except zoo.RequestError as error:
        print(error)
"""
    assert python("-c", code, site=site).stdout.splitlines() == [
        "hi [('strength', 1)] 1.0",
        "strength = 2: input should be less than or equal to 1.",
        "strength = '1': input should be a number.",
        "tone = 'wam': input should be 'warm' or 'cold'. Did you mean 'warm'?",
        "'strenth' is not an option of generate. Did you mean 'strength'? Options: strength, layers, tone, loud, seed, force, stream.",
    ]


def test_the_contract_holds_options_to_what_they_say(tmp_path: Path):
    """As declared there is one flag too many; then everything is wrong that can be."""
    fine = REGISTRY.partition('[[option]]\nname = "force"')[0]
    heavy = OPTIONS.replace("from typing", "import torch\nfrom typing")
    silent = OPTIONS.replace("seed: int = 0", "volume: int = 0")
    said = {
        "free": (fine, OPTIONS, ""),
        "taken": (
            REGISTRY,
            OPTIONS,
            "option force cannot be set, since `zoo run` has --force itself; call it otherwise",
        ),
        "gone": (
            fine + '[[option]]\nname = "pitch"\nsummary = "x"\n',
            OPTIONS,
            "no family of it has option pitch; add it",
        ),
        "switch": (
            fine.replace('value = "NUMBER"\n', ""),
            OPTIONS,
            "option strength is declared as a switch, but its field",
        ),
        "heavy": (
            fine,
            heavy,
            ":EchoOptions imports torch, and `zoo run MODEL --help` waits for it; keep options in a",
        ),
        "silent": (fine, silent, "option volume has no description; write Field("),
        "other": (
            fine.replace("out_echo.options:Echo", "zoo.family:Text"),
            OPTIONS,
            "but its class has EchoOptions of",
        ),
    }
    for name, (registry, options, _) in said.items():
        package = install(tmp_path, f"out_{name}", registry=registry.replace("out_echo", f"out_{name}"), code=CODE)
        for file, text in {"plugin": CODE, "family": FAMILY, "options": options}.items():
            (package / f"{file}.py").write_text(text.replace("out_echo", f"out_{name}"))
    code = """
import json, sys
from zoo.testing.contract import checks, only, perform
print(json.dumps({name: [result.reason for check in only(checks("out_" + name), "options") for result in [perform(check, None)] if result.outcome == "failed"] for name in sys.argv[1:]}))
"""
    done = python("-c", code, *said, site=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (_, _, sentence) in said.items():
        assert len(found[name]) == bool(sentence) and all(sentence in failure for failure in found[name]), found
