"""docs/hooks.md says what the hooks, the contracts and the built-in plugins say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from write_hooks import reference

from zoo import hooks
from zoo.plugins import declarations, manager
from zoo.plugins.kinds import KINDS
from zoo.plugins.names import of_kind

pytestmark = pytest.mark.quick

WRITTEN = Path(__file__).parents[3] / "docs" / "hooks.md"


def section(hook: str) -> str:
    return WRITTEN.read_text(encoding="utf-8").split(f"## {hook}\n")[1].split("\n## ")[0]


def test_the_reference_of_hooks_is_in_step_with_the_code():
    assert WRITTEN.read_text(encoding="utf-8") == reference(), "run: python docs/write_hooks.py > docs/hooks.md"


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_says_who_uses_it_and_its_own_example_is_one_of_them(kind: str):
    name, _, target = KINDS[kind].example.partition(" = ")
    used = re.findall(r"^- (\w+): `(.+?)`, `(.+?)`$", section(KINDS[kind].hook), re.MULTILINE)
    assert (name, target) in {(name, target) for _, name, target in used}
    assert used == [
        (found.plugin, short, manager.load(found.plugin)[kind][short])
        for short, found in of_kind(kind).items()
        if manager.find(found.plugin).ours
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_table_is_described(kind: str):
    keys = re.findall(
        r"^- `(\w+)`(, \*\*needed\*\*)?: ", section(KINDS[kind].hook).split("in registry.toml")[1], re.MULTILINE
    )
    assert [(key, bool(needed)) for key, needed in keys] == [
        (key, needed) for key, (needed, _) in declarations.keys_of(kind).items()
    ]


@pytest.mark.parametrize(
    ("hook", "line"),
    [
        (
            "register_compressors",
            "- `rebuild(model: Model, record: Record) -> None`, **needed**: Replay the structural change",
        ),
        ("register_compressors", "- `trains: bool`, by default `False`: updates weights by gradient descent"),
        ("register_families", "A subclass of `zoo.family.Family`:"),
        ("register_families", "`zoo.family.VisionFamily`: What image classifiers share"),
        ("register_losses", "Or a subclass of `zoo.loss.FeatureLoss`:"),
        ("register_evaluators", "An object like `zoo.evaluator.Evaluator`:"),
        ("register_data", "- `splits: tuple[str, ...]`, **needed**: the first is taken where none is named"),
        ("register_commands", "or a `typer.Typer` with commands of its own."),
    ],
)
def test_what_is_registered_is_read_from_the_code(hook: str, line: str):
    assert line in section(hook)


def test_the_hooks_fit_on_one_screen():
    assert len(inspect.getsource(hooks).splitlines()) <= 50
