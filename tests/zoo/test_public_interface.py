"""docs/public-interface.md says what plugins may import; what it says is there, and nothing of ours for them imports more."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "public-interface.md").read_text(encoding="utf-8")


def listed() -> dict[str, list[str]]:
    """The names of the page by the module they are listed under."""
    rows = re.findall(r"^\|(?:[^|`]*\|)? `([\w.]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


LISTED = listed()
# Every face, and the files at the root, of which the page lists what the code offers.
FACES = (
    "zoo_compress",
    "zoo.model",
    "zoo.anatomy",
    "zoo.family",
    "zoo.evaluation",
    "zoo.data",
    "zoo.testing",
)


def test_the_page_is_read():
    assert len(LISTED) == PAGE.count("\n| ") - PAGE.count("\n| module") - PAGE.count("\n| to write") > 20


@pytest.mark.parametrize("module", LISTED)
def test_every_name_listed_is_there_and_in_order(module: str):
    found = importlib.import_module(module)
    assert [name for name in LISTED[module] if not hasattr(found, name)] == []
    assert LISTED[module] == sorted(LISTED[module])


@pytest.mark.parametrize("module", FACES)
def test_whatever_a_package_offers_is_listed(module: str):
    homes: dict[str, tuple[str, ...]] = importlib.import_module(module).HOMES
    assert LISTED[module] == sorted(name for names in homes.values() for name in names)


def test_whatever_zoo_offers_is_listed():
    import zoo

    assert LISTED["zoo"] == sorted(name for name in zoo.__all__ if not name.startswith("__"))


def imported(text: str) -> Iterator[tuple[str, str]]:
    """What a file imports of ours: modules with names."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.partition(".")[0] in ("zoo", "zoo_compress")
        ):
            yield from ((node.module, alias.name) for alias in node.names)


EXAMPLES = sorted((ROOT / "examples" / "third_party").rglob("*.py"))
TEMPLATES = sorted((ROOT / "zoo" / "templates").rglob("*.py.tmpl"))


@pytest.mark.parametrize("file", [*EXAMPLES, *TEMPLATES], ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_is_there_to_be_copied_imports_only_what_is_listed(file: Path):
    text = re.sub(r"^(from|import) \$.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = set(imported(text.replace("$", "")))
    modules = {(parent, leaf) for parent, _, leaf in (module.rpartition(".") for module in LISTED)}
    assert names - modules <= {(module, name) for module, names in LISTED.items() for name in names}


def test_there_is_something_to_be_copied():
    assert len(EXAMPLES) > 8 and len(TEMPLATES) > 8
