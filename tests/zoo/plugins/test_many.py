"""Many plugins: what the light commands import stays the same, and of a plugin they open its declarations and nothing else."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from broken import API, COMMAND, MODEL, made
from wheels import Environment

COUNTS = (0, 20, 200)
COMMANDS = ("--help", "list", "list --json", "info tiny-code", "plugins", "plugins --json")
DECLARING = {"registry.toml", "entry_points.txt", "METADATA"}

# Runs a command, then writes what was imported and which files were opened to stderr.
WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from zoo.cli import main
code = main(sys.argv[1:])
seen = list(opened), sorted(sys.modules)
import json
print("SEEN" + json.dumps(seen), file=sys.stderr)
sys.exit(code)
"""

STAGE = '[[compressor]]\nname = "{name}-stage"\nsummary = "Made up for a test"\n'


@dataclass
class Seen:
    """What one run of a command did."""

    out: str
    modules: list[str]
    opened: Counter[Path]  # in site-packages


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, int], Seen]]:
    """Every command with so many plugins installed."""
    place = Environment(tmp_path_factory.mktemp("many"))
    found: dict[tuple[str, int], Seen] = {}
    for before, count in pairwise((0, *COUNTS)):
        if count:
            place.install(*(dummy(f"dummy-{i}") for i in range(before, count)))
        for command in COMMANDS:
            found[command, count] = watch(place, command)
    assert not place.imported()
    yield found
    shutil.rmtree(place.folder)


def dummy(name: str):
    return made(name, API + COMMAND.format(name=name) + MODEL.format(name=f"{name}-model") + STAGE.format(name=name))


def watch(place: Environment, command: str) -> Seen:
    done = place.run("-c", WATCHED, *command.split())
    said, _, seen = done.stderr.rpartition("SEEN")
    assert (done.returncode, said) == (0, ""), done.stderr
    opened, modules = json.loads(seen)
    paths = [Path(path) for path in opened if path.startswith(f"{place.site}/")]
    return Seen(done.stdout, modules, Counter(path.relative_to(place.site) for path in paths))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_modules_are_the_same_however_many_plugins_there_are(runs: dict[tuple[str, int], Seen], command: str):
    none, some, many = (runs[command, count].modules for count in COUNTS)
    assert set(some) - set(none) == set(many) - set(none) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_plugin_is_opened_but_what_it_declares_and_that_once(
    runs: dict[tuple[str, int], Seen], command: str
):
    opened = runs[command, 200].opened
    assert sum(path.name == "registry.toml" for path in opened) == 200  # the test sees what is opened
    assert {path.name for path in opened} == DECLARING
    assert max(opened.values()) == 1


def test_all_of_them_are_there(runs: dict[tuple[str, int], Seen]):
    assert "dummy-199-model" in runs["list", 200].out and "dummy-199-model" not in runs["list", 20].out
    assert "dummy-199" in runs["--help", 200].out
    assert {"dummy-0", "dummy-199"} <= {plugin["name"] for plugin in json.loads(runs["plugins --json", 200].out)}
