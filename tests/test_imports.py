"""The house: who may import whom, read from the syntax trees, imports inside functions included.

1. zoo_<plugin> imports zoo_compress imports zoo; plugins never import each other.
2. At run time there is no import circle, the `__init__` of every package above a module included.
3. Arrows point down the floors below. Annotations alone may point up, to Model, Family and Compressor.
4. The model room never imports the registry, the loader or a concrete family.
5. Nothing on the way of `zoo --help` imports torch, pydantic or numpy.

Inside the house code imports the file that defines a name; the faces of packages are for those who use it.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "__init__.py").exists())
PACKAGES = ("zoo", "zoo_compress", *PLUGINS)
HEAVY = {"torch", "transformers", "diffusers", "timm", "accelerate", "datasets", "bitsandbytes", "torch_pruning"}

# The rooms, from the ground up: a file imports from its own floor or from those below.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "zoo": (
        ("errors", "faces", "hooks"),
        ("system", "options"),
        ("tensors", "anatomy"),
        ("plugins",),
        ("catalog",),
        ("data",),
        ("model",),
        ("compressor", "loss", "evaluator"),
        ("family",),
        ("artifact",),
        ("evaluation",),
        ("registry",),
        ("loading",),
        ("testing", "cli"),
        ("plugin", "__main__"),
    ),
    "zoo_compress": (
        ("dryrun", "experts", "losses", "numbering"),
        ("calibrate", "measure", "similarity"),
        ("train",),
        ("methods", "report"),
        ("recipe",),
        ("commands", "plugin"),
    ),
}
NOUNS = {"Model", "Family", "Compressor"}  # what an annotation may name from above
# Pairs of files that may break the second and the third sentence, each with its reason.
EXCEPTIONS = {
    # People save with `model.save(path)`, and what writes a model needs the whole of it.
    ("zoo.model.model", "zoo.artifact.store"),
    # The command begins in the `__init__`, so that Ctrl-C is a sentence while everything else is still being imported.
    ("zoo.cli", "zoo.cli.shell"),
    # What bitsandbytes would fetch from a hub is kept out from the moment that zoo is imported.
    ("zoo", "zoo.system.hub_kernels"),
}

# Loaded by `import zoo`, `zoo --help`, `zoo list`, `zoo info` or `zoo plugins`.
START = [
    *(f"zoo/{name}.py" for name in ("__init__", "__main__", "catalog", "errors", "faces", "hooks", "plugin")),
    *(f"zoo/{room}/__init__.py" for room in ("artifact", "family", "family/text", "loading", "model", "system")),
    *(f"zoo/family/text/{name}.py" for name in ("task", "tasks", "causal", "seq2seq", "masked", "tokens")),
    *("zoo/family/base.py", "zoo/family/task.py"),
    *("zoo/family/text/shape.py", "zoo/loading/weights.py", "zoo/artifact/manifest.py"),
    *(f"zoo/system/{name}.py" for name in ("hub_kernels", "quantities", "reading", "signals", "writing")),
    *sorted(str(file.relative_to(ROOT)) for room in ("cli", "plugins") for file in (ROOT / "zoo" / room).rglob("*.py")),
    *(
        f"{folder}/{name}.py"
        for folder in ("compress/zoo_compress", *(f"plugins/{name}" for name in PLUGINS))
        for name in ("__init__", "plugin")
    ),
]


def files_of(package: str) -> list[Path]:
    return sorted(folder_of(package).rglob("*.py"))


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


def folder_of(package: str) -> Path:
    return {"zoo": ROOT / "zoo", "zoo_compress": ROOT / "compress/zoo_compress"}.get(
        package, ROOT / "plugins" / package
    )


def modules() -> dict[str, Path]:
    """Every module of the house by its dotted name; a package stands for its `__init__`."""
    found = {}
    for package in PACKAGES:
        for file in files_of(package):
            steps = (package, *file.relative_to(folder_of(package)).with_suffix("").parts)
            found[".".join(steps[:-1] if steps[-1] == "__init__" else steps)] = file
    return found


@dataclass(frozen=True)
class Arrow:
    """One import: who imports what, by which name, and whether for annotations alone."""

    source: str
    target: str
    name: str
    annotation: bool


def arrows(tree: ast.AST, source: str, known: Iterable[str], *, annotation: bool = False) -> Iterator[Arrow]:
    """Every import of a module of the house in a tree."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        for node in tree.body:
            yield from arrows(node, source, known, annotation=True)
        for node in tree.orelse:
            yield from arrows(node, source, known, annotation=annotation)
        return
    if isinstance(tree, ast.ImportFrom) and tree.module and tree.level == 0:
        for alias in tree.names:
            inner = f"{tree.module}.{alias.name}"
            if inner in known or tree.module in known:
                yield Arrow(source, inner if inner in known else tree.module, alias.name, annotation)
    elif isinstance(tree, ast.Import):
        for alias in tree.names:
            if alias.name in known:
                yield Arrow(source, alias.name, "", annotation)
    for node in ast.iter_child_nodes(tree):
        yield from arrows(node, source, known, annotation=annotation)


MODULES = modules()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}
ARROWS = [arrow for name, tree in TREES.items() for arrow in arrows(tree, name, MODULES)]


def above(module: str) -> list[str]:
    """The packages that a module lies in, which are imported before it."""
    steps = module.split(".")
    return [".".join(steps[:depth]) for depth in range(1, len(steps))]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in edges:
        if node not in order:
            visit(node)
    return found


def test_there_is_no_circle():
    edges = {name: set(above(name)) for name in MODULES}
    for arrow in ARROWS:
        if not arrow.annotation and (arrow.source, arrow.target) not in EXCEPTIONS:
            edges[arrow.source] |= {arrow.target, *above(arrow.target)} - {arrow.source}
    assert circles(edges) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def room_of(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def floor_of(module: str) -> int:
    """The floor of a module; the face of a whole package is below all of them."""
    package, room = room_of(module)
    return next((number for number, rooms in enumerate(FLOORS[package]) if room in rooms), -1)


def goes_up(arrow: Arrow) -> bool:
    package = room_of(arrow.source)[0]
    if package not in FLOORS or package != room_of(arrow.target)[0] or room_of(arrow.source) == room_of(arrow.target):
        return False
    if MODULES[arrow.source].name == "__init__.py":  # a face names for type checkers what it offers
        return False
    if arrow.annotation and arrow.name in NOUNS:
        return False
    return floor_of(arrow.target) > floor_of(arrow.source) and (arrow.source, arrow.target) not in EXCEPTIONS


def test_every_file_has_a_floor():
    rooms = {room_of(name) for name in MODULES if room_of(name)[0] in FLOORS and room_of(name)[1]}
    assert rooms == {(package, room) for package, floors in FLOORS.items() for floor in floors for room in floor}


def test_arrows_point_down():
    assert [arrow for arrow in ARROWS if goes_up(arrow)] == []


def test_at_most_three_exceptions_and_none_for_nothing():
    pairs = {(arrow.source, arrow.target) for arrow in ARROWS if not arrow.annotation}
    assert len(EXCEPTIONS) <= 3
    assert pairs >= EXCEPTIONS


def test_a_method_imports_no_other_method():
    """What two methods need lies a floor below; the files of one folder are one method's."""

    def method(module: str) -> str:
        return module.removeprefix("zoo_compress.methods.").partition(".")[0]

    methods = [arrow for arrow in ARROWS if arrow.source.startswith("zoo_compress.methods.")]
    others = [
        a for a in methods if a.target.startswith("zoo_compress.methods.") and method(a.target) != method(a.source)
    ]
    assert others == []


def test_the_model_knows_no_registry_no_loader_and_no_family():
    forbidden = ("zoo.registry", "zoo.loading", "zoo.family.")
    reached = [a for a in ARROWS if a.source.startswith("zoo.model") and a.target.startswith(forbidden)]
    assert {(arrow.target, arrow.name, arrow.annotation) for arrow in reached} <= {("zoo.family.base", "Family", True)}


FACES = {name for name, tree in TREES.items() if "face(__name__" in ast.unparse(tree)}


def test_inside_the_house_nobody_goes_through_a_face():
    inside = [arrow for arrow in ARROWS if MODULES[arrow.source].name != "__init__.py"]
    assert [a for a in inside if a.target in {*FACES, "zoo"} and a.name and a.name != "__version__"] == []


@pytest.mark.parametrize("name", sorted(FACES))
def test_a_face_offers_what_it_says_and_hides_no_file(name: str):
    homes: dict[str, tuple[str, ...]] = importlib.import_module(name).HOMES
    said = {(arrow.target, arrow.name) for arrow in ARROWS if arrow.source == name and arrow.annotation}
    assert said == {(module, offered) for module, names in homes.items() for offered in names}
    files = {module.rpartition(".")[2] for module in MODULES if module.startswith(f"{name}.")}
    assert not files & {offered for names in homes.values() for offered in names}


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
    heavy = HEAVY | {"pydantic", "numpy", "huggingface_hub", "xxhash"}
    assert not found & heavy, f"{name} imports {', '.join(sorted(found & heavy))} at the top"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str):
    assert (files_of(package)[0].parent / "py.typed").exists()


def test_the_reader_of_trees_sees_what_matters():
    tree = ast.parse(
        "import a.b\nfrom c.d import e\ntry:\n    import f\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import g\ndef h():\n    import i\nclass J:\n    import k\nfrom . import l\n"
    )
    assert set(imported(at_the_top(tree))) == {"a", "c", "f", "k"}
    assert set(imported(ast.walk(tree))) == {"a", "c", "f", "g", "i", "k"}
