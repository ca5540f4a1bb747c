"""Broken plugins, really installed, many at once: the tool goes on, and each of them is one line with its name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from broken import ALL, AT_WORK, KILLS, ODD, RENAMED, SLEEPS, STAGES, USED, Broken
from wheels import Environment
from zygote import Zygote

import zoo

FAULTY = [case for case in ALL if case.fault]

RECIPE = """\
[recipe]
name = "plain"

[model]
name = "tiny-code"

[data]
train = "texts"
test = "texts"

[[stage]]
use = "inherit"
layers = "first:3"

[[stage]]
use = "distill"
loss = [{ use = "kl", weight = 1.0 }]
steps = 1
batch = 1
length = 16

[evaluate]
tasks = ["perplexity"]
"""

WORK = '[recipe]\nname = "work"\n\n[model]\nname = "tiny-code"\n\n[[stage]]\nuse = "{stage}"\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An environment with every broken plugin there is, each as broken as it says."""
    made = Environment(tmp_path_factory.mktemp("broken"))
    made.install(*(case.distribution for case in ALL))
    for case in ALL:
        if case.damage:
            case.damage(made.site, case.distribution)
    write_recipe(made)
    yield made
    shutil.rmtree(made.folder)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An environment with those that are broken only when they are used, and nothing else."""
    made = Environment(tmp_path_factory.mktemp("few"))
    made.install(*(case.distribution for case in (ODD, AT_WORK, SLEEPS, KILLS, RENAMED)))
    write_recipe(made)
    yield made
    shutil.rmtree(made.folder)


@pytest.fixture(scope="module")
def zygote(few: Environment) -> Iterator[Zygote]:
    """A process of that environment which has imported torch, and forks for each command."""
    with Zygote(python=few.python, **few.variables()) as zygote:
        yield zygote


def write_recipe(place: Environment) -> None:
    (place.folder / "texts").mkdir()
    (place.folder / "texts" / "one.txt").write_text("def read(path):\n    return path.open().read()\n" * 20)
    (place.folder / "plain.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def warnings(place: Environment) -> list[str]:
    """What every command says of the plugins."""
    done = place.zoo("list")
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def fault(place: Environment, case: Broken) -> str:
    return case.fault.replace("{site}", str(place.site)).replace("{version}", zoo.__version__)


# --- the tool goes on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("--help", "compress"),
        ("list", "tiny-code"),
        ("list --json", '"tiny-code"'),
        ("info tiny-code", "Apache-2.0"),
        ("info tiny-code --json", '"tiny-code"'),
        ("plugins info raises", "raises.plugin"),
    ],
)
def test_light_commands_go_on_and_import_nothing(place: Environment, warnings: list[str], command: str, shows: str):
    done = place.zoo(*command.split())
    assert done.returncode == 0 and shows in done.stdout, done.stderr
    assert done.stderr.splitlines() == ([] if "plugins" in command else warnings)
    assert place.imported() == set()


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.distribution.name)
def test_a_broken_plugin_is_one_line_with_its_name(place: Environment, warnings: list[str], case: Broken):
    mine = [line for line in warnings if line.startswith(f"warning: plugin {case.name}: ")]
    assert mine == [f"warning: plugin {case.name}: {fault(place, case)}"]
    assert mine[0].isprintable() and len(mine[0]) < 1000


def test_there_are_no_other_lines(warnings: list[str]):
    assert len(warnings) == len(FAULTY)


def test_looking_again_finds_the_same_faults(place: Environment):
    code = (
        "from zoo.plugins import manager; print([p.fault for p in manager.plugins_in_use()]); "
        "manager.refresh(); print([p.fault for p in manager.plugins_in_use()])"
    )
    first, second = place.run("-c", code).stdout.splitlines()
    assert first == second and first.count("is damaged") == 3


def test_plugins_lists_the_broken_ones_with_the_reason(place: Environment):
    table = place.zoo("plugins")
    shown = {plugin["name"]: plugin for plugin in json.loads(place.zoo("plugins", "--json").stdout)}
    assert table.returncode == 0
    for case in FAULTY:
        assert (shown[case.name]["status"], shown[case.name]["fault"]) == ("broken", fault(place, case))
        assert any(
            line.startswith(f"{case.name} ") and line.endswith(f"broken: {fault(place, case)}")
            for line in table.stdout.splitlines()
        )
    assert shown["raises"]["status"] == shown["zoo_slm"]["status"] == shown["record-junk"]["status"] == "ok"
    assert not {"metadata-lost", "interrupted", "entries-lost"} & set(shown)
    assert place.imported() == set()


def test_models_run_beside_broken_plugins(place: Environment, warnings: list[str]):
    done = place.zoo("run", "tiny-code", "--prompt", "def read_lines(path):", "--max-new-tokens", "3")
    assert (done.returncode, done.stderr.splitlines()) == (0, warnings) and done.stdout.strip()
    assert place.imported() == set()


def test_a_recipe_of_builtin_parts_is_planned_beside_broken_plugins(place: Environment, warnings: list[str]):
    done = place.zoo("plan", "plain.toml", "--json")
    assert (done.returncode, done.stderr.splitlines()) == (0, warnings) and json.loads(done.stdout)["stages"]
    assert place.imported() == set()


# --- what using one says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", USED, ids=lambda case: case.distribution.name)
def test_using_a_broken_plugin_says_why_in_one_sentence(place: Environment, case: Broken):
    done = place.zoo("-q", case.distribution.name)
    assert place.imported() <= {case.distribution.package}
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {case.refusal}\n")


def test_a_plugin_that_sleeps_can_be_interrupted(place: Environment):
    command = [str(place.python), "-m", "zoo", "-q", "sleeps"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=place.folder, env=place.variables()
    ) as process:
        while not place.imported():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "error: interrupted before the work was done.\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tiny-code"', '"odd-model"'),
        ('use = "inherit"\nlayers = "first:3"', 'use = "odd-stage"'),
        ('"kl"', '"odd-loss"'),
        ('"perplexity"', '"odd-task"'),
        ('train = "texts"', 'train = "odd-data"'),
    ],
    ids=["model", "compressor", "loss", "evaluator", "data"],
)
def test_a_recipe_that_uses_a_broken_plugin_says_why_in_one_sentence(
    few: Environment, zygote: Zygote, old: str, new: str
):
    assert RECIPE.count(old) == 1
    (few.folder / "odd.toml").write_text(RECIPE.replace(old, new))
    done = zygote.run("-q", "plan", "odd.toml", cwd=few.folder)
    assert done.err.endswith(
        "Plugin odd cannot be used: odd.plugin cannot be imported: ZeroDivisionError: division by zero\n"
    )
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert few.imported() == {ODD.distribution.package}


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ("at-work.raises", "unexpected ValueError: no, in plugin at-work (run again with -v for the traceback)"),
        ("at-work.exits", "Plugin at-work ended the program before the work was done (SystemExit: 0)."),
        ("at-work.panics", "unexpected Panic: oh, in plugin at-work (run again with -v for the traceback)"),
    ],
)
def test_a_stage_that_fails_at_work_is_named(few: Environment, zygote: Zygote, stage: str, sentence: str):
    assert stage in STAGES
    (few.folder / "work.toml").write_text(WORK.format(stage=stage))
    done = zygote.run("-q", "compress", "work.toml", cwd=few.folder)
    assert done.err.splitlines()[-1] == f"error: {sentence}" and done.code == 1
    assert few.imported() == {AT_WORK.distribution.package}


def test_a_taken_name_stays_with_ours_and_the_other_is_reached_by_its_full_name(place: Environment):
    assert place.zoo("-q", "takes-list:list").stdout == "it runs\n"
    assert place.imported() == {"takes_list"}
    assert "tiny-code" in place.zoo("-q", "list").stdout


def test_a_name_that_two_declare_is_refused_with_both_full_names(place: Environment):
    done = place.zoo("-q", "shared")
    sentence = (
        "'shared' is declared by plugins shares-one and shares-two: write 'shares-one:shared' or 'shares-two:shared'."
    )
    assert (
        (done.returncode, done.stdout) == (2, "")
        and done.stderr.startswith("error: ")
        and done.stderr.endswith(f"{sentence}\n")
    )
    assert place.imported() == set()
    assert place.zoo("-q", "shares-two:shared").stdout == "it runs\n"
    assert place.imported() == {"shares_two"}
    assert sentence in place.zoo("plugins").stderr


def test_two_names_for_one_module_are_two_plugins(few: Environment):
    code = "from zoo import registry; registry.command('renamed:renamed')(); registry.command('old-name:renamed')()"
    done = few.run("-c", code)
    assert (done.stdout, done.stderr) == ("it runs\n" * 2, "")
    assert few.imported() == {"renamed"}


# --- what imports nothing ---------------------------------------------------------------------------------------------


def test_verify_imports_no_plugin(few: Environment, zygote: Zygote):
    weights = Path(find_spec("zoo_slm").origin).parent / "weights" / "tiny-code"
    done = zygote.run("-q", "verify", str(weights), cwd=few.folder)
    assert (done.code, done.err) == (0, "") and done.out.endswith("every file is as saved.\n")
    assert few.imported() == set()


def test_disabling_enabling_and_uninstalling_import_no_plugin(few: Environment):
    assert few.zoo("-q", "plugins", "disable", "kills").returncode == 0
    refused = few.zoo("-q", "kills")
    assert refused.returncode != 0 and "plugin kills, which is disabled: `zoo plugins enable kills`" in refused.stderr
    assert few.zoo("-q", "plugins", "enable", "kills").returncode == 0
    done = few.zoo("-q", "plugins", "uninstall", "kills", "--yes")
    assert done.returncode == 0 and not (few.site / "kills").exists(), done.stderr
    assert few.imported() == set()
