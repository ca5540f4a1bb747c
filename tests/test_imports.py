"""Who may import whom, read from the syntax trees: zoo_<family> -> zoo_compress -> zoo."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists())
HEAVY = {"torch", "transformers", "diffusers", "timm", "accelerate", "datasets", "bitsandbytes", "torch_pruning"}

# Loaded by `import zoo`, `zoo --help`, `zoo list`, `zoo info` or `zoo plugins`.
START = [
    *(
        f"zoo/{name}.py"
        for name in (
            "__init__",
            "__main__",
            "catalog",
            "declarations",
            "errors",
            "files",
            "hooks",
            "plugins",
            "registry",
            "weights",
        )
    ),
    *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "zoo/cli").glob("*.py")),
    *(
        f"{folder}/{name}.py"
        for folder in ("compress/zoo_compress", *(f"plugins/{name}" for name in PLUGINS))
        for name in ("__init__", "plugin")
    ),
]


def files_of(package: str) -> list[Path]:
    place = {"zoo": ROOT / "zoo", "zoo_compress": ROOT / "compress/zoo_compress"}.get(
        package, ROOT / "plugins" / package
    )
    return sorted(place.rglob("*.py"))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """The top-level names that import statements among the nodes bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]


def at_the_top(tree: ast.Module) -> Iterator[ast.AST]:
    """Everything that runs on import: not what is inside functions or under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("zoo", {"zoo_compress", *PLUGINS}),
        ("zoo_compress", set(PLUGINS)),
        *((name, set(PLUGINS) - {name}) for name in PLUGINS),
    ],
)
def test_imports_point_one_way(package: str, forbidden: set[str]):
    assert files_of(package)
    for file in files_of(package):
        found = set(imported(ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
        assert not found & forbidden, f"{file.relative_to(ROOT)} imports {', '.join(sorted(found & forbidden))}"


@pytest.mark.parametrize("name", START)
def test_the_start_imports_nothing_heavy_at_the_top(name: str):
    found = set(imported(at_the_top(ast.parse((ROOT / name).read_text(encoding="utf-8")))))
    heavy = HEAVY | {"pydantic", "numpy", "huggingface_hub"}
    assert not found & heavy, f"{name} imports {', '.join(sorted(found & heavy))} at the top"


@pytest.mark.parametrize("package", ["zoo", "zoo_compress", *PLUGINS])
def test_every_package_is_typed(package: str):
    assert (files_of(package)[0].parent / "py.typed").exists()


def test_the_reader_of_trees_sees_what_matters():
    tree = ast.parse(
        "import a.b\nfrom c.d import e\ntry:\n    import f\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import g\ndef h():\n    import i\nclass J:\n    import k\nfrom . import l\n"
    )
    assert set(imported(at_the_top(tree))) == {"a", "c", "f", "k"}
    assert set(imported(ast.walk(tree))) == {"a", "c", "f", "g", "i", "k"}
