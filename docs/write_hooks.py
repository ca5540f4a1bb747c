"""The reference of hooks, written from the hooks, the contracts and the built-in plugins: `python docs/write_hooks.py`."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from zoo.plugins import declarations, manager
from zoo.plugins.declarations import API, Declared, DeclaredOption, ModelSpec, keys_of
from zoo.plugins.kinds import KINDS, Kind
from zoo.plugins.names import object_of, of_kind

INTRODUCTION = f"""# Hooks

Written by `python docs/write_hooks.py > docs/hooks.md`; a test keeps it in step with the code.

A plugin is a distribution with one or two entry points of the plugin's name:

```toml
[project.entry-points."zoo.catalog"]
my-plugin = "my_package"         # the top-level package whose registry.toml says what there is; it is not imported

[project.entry-points.zoo]
my-plugin = "my_package.plugin"  # the module with the hooks, imported when something of the plugin is used
```

A plugin that only declares models needs the first alone. What it adds is said twice: `registry.toml` declares each name, so
that `zoo list`, `zoo plugins` and `zoo --help` answer without importing anybody's code, and the hook of that kind registers the
same name with a target, `"package.module:attribute"`, which is imported when the name is used. A class is instantiated once.
Whatever goes wrong with a plugin is one line with its name, and everything else goes on; `zoo plugins check NAME` holds a plugin
to its contracts.

**api.** `registry.toml` begins with the range of plugin API versions that the plugin is made for, `api = ">=1,<2"` (`>=`, `<=`,
`==`, `<` and `>`, separated by commas). This zoo has version {API}. A plugin made for another is left out, and says so.

**Names** consist of {declarations.NAME}. A plugin's name may be written
with `-`, `_` or `.` alike. Everything has a full name, `my-plugin:thing`, which is taken wherever a name is: in `zoo.load`, in
recipes, on the command line. The short one, `thing`, is enough where no other plugin has it; what comes with zoo itself keeps its
short names whatever is installed. A saved model keeps the plugins of its family and of each stage.

**needs.** Distributions that a thing cannot work without, as pip spells them (`needs = ["torchao>=0.18"]`), can be left out of the
package's own dependencies: using the thing says what to install.
"""


def reference() -> str:
    """Return docs/hooks.md: every hook, what is registered with it, what is declared of it, and who uses it."""
    sections = [INTRODUCTION, *(_hook(kind) for kind in KINDS.values()), _models(), _options()]
    return "\n".join(sections)


def _hook(kind: Kind) -> str:
    users = [user for user in of_kind(kind.name).values() if manager.find(user.plugin).ours]
    name, _, target = kind.example.partition(" = ")
    lines = [
        f"## {kind.hook}",
        "",
        f"Add {kind.things}.",
        "",
        "```python",
        "@hookimpl",
        f"def {kind.hook}(register: Register) -> None:",
        f"    register('{name}', '{target}')",
        "```",
        "",
        "### What is registered",
        "",
        *_contract(kind, users),
        "",
        f"### `[[{kind.name}]]` in registry.toml",
        "",
        *_keys(kind.name),
        "",
        "### Used by",
        "",
        *(f"- {user.plugin}: `{user.name}`, `{_target(user)}`" for user in users),
        "",
    ]
    return "\n".join(lines)


# What the methods of a contract return that is a contract too: method -> "module:Class".
RETURNED = {"family": {"task": "zoo.family.task:Task"}}


def _models() -> str:
    return "\n".join(
        [
            "## Models",
            "",
            "Models are only declared: a family builds them. Their weights lie in the package or on a hub.",
            "",
            "### `[[model]]` in registry.toml",
            "",
            *_keys("model"),
            "",
        ]
    )


def _options() -> str:
    return "\n".join(
        [
            "## Options",
            "",
            "What `generate` takes is a class of the family, `Options`, in a file that imports no torch; its fields are checked with",
            "pydantic, in Python and by `zoo run` alike. A field that some plugin declares here has a flag: `zoo run --help` lists what is",
            "declared, `zoo run MODEL --help` what that model takes. The options of zoo's own families are declared already:",
            f"{', '.join(f'`{option.name}`' for option in manager.find(manager.CORE).options)}.",
            "",
            "### `[[option]]` in registry.toml",
            "",
            *_keys("option"),
            "",
        ]
    )


def _target(found: Declared) -> str:
    return manager.load(found.plugin)[found.kind][found.name]


# --- what is registered -----------------------------------------------------------------------------------------------


def _contract(kind: Kind, users: list[Declared]) -> Iterator[str]:
    """What a registered thing has to be: a base class, a protocol, or what a sentence says."""
    for number, contract in enumerate(kind.contracts):
        if number:
            yield ""
        module, colon, name = contract.partition(":")
        if not colon:
            yield contract
            continue
        base = getattr(importlib.import_module(module), name)
        yield from _described(base, _lead(base, number))
        for method, contract in RETURNED.get(kind.name, {}).items():
            module, _, name = contract.partition(":")
            yield ""
            yield from _described(
                getattr(importlib.import_module(module), name), f"Its `{method}` returns a subclass of"
            )
        for inner in _refinements(base, users):
            needed = ", ".join(f"`{name}`" for name in sorted(inner.__abstractmethods__))
            yield ""
            first, _, rest = str(inspect.getdoc(inner)).partition("\n")
            yield f"`{_public_name(inner)}`: {first} It leaves to write: {needed}."
            yield rest.rstrip() if rest.strip() else ""


def _lead(base: Any, number: int) -> str:
    if _is_protocol(base):
        return "An object like"
    return "Or a subclass of" if number else "A subclass of"


def _is_protocol(base: Any) -> bool:
    return bool(getattr(base, "_is_protocol", False))


def _refinements(base: type, users: list[Declared]) -> list[Any]:
    """The abstract classes between a contract and the built-in things of its kind, such as those of each modality."""
    lines = [type(object_of(user)).__mro__ for user in users]
    inner = {cls for line in lines for cls in line if inspect.isabstract(cls) and base in cls.__mro__[1:]}
    return sorted((cls for cls in inner if cls.__module__.startswith("zoo.")), key=lambda cls: cls.__qualname__)


def _described(base: type, what: str) -> Iterator[str]:
    """A class with its attributes and methods, those without a default marked as needed."""
    yield f"{what} `{_public_name(base)}`:"
    yield ""
    yield str(inspect.getdoc(base))
    yield ""
    lines, body = inspect.getsource(base).splitlines(), _source(base).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign):
            default = f", by default `{ast.unparse(node.value)}`" if node.value else ", **needed**"
            kind = ast.unparse(node.annotation).removeprefix("ClassVar[")
            yield f"- `{ast.unparse(node.target)}: {kind[:-1] if kind != ast.unparse(node.annotation) else kind}`{default}{_comment(node, lines)}"
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            needed = (
                ", **needed**" if node.name in getattr(base, "__abstractmethods__", ()) or _is_protocol(base) else ""
            )
            yield f"- `{_signature(node, skip=('self',))}`{needed}: {(ast.get_docstring(node) or '').partition(chr(10))[0]}"
        elif isinstance(node, ast.FunctionDef) and node.name == "__call__":
            yield f"- `{_signature(node, skip=('self',))}`, **needed**: {(ast.get_docstring(node) or '').partition(chr(10))[0]}"


def _public_name(base: type) -> str:
    """The name to import a class by: that of the nearest package whose face offers it, else that of its module."""
    steps = base.__module__.split(".")
    for depth in range(len(steps) - 1, 0, -1):
        package = ".".join(steps[:depth])
        homes = getattr(importlib.import_module(package), "HOMES", {})
        if base.__name__ in homes.get(base.__module__, ()):
            return f"{package}.{base.__name__}"
    return f"{base.__module__}.{base.__qualname__}"


def _signature(node: ast.FunctionDef, *, skip: tuple[str, ...]) -> str:
    node.args.args = [argument for argument in node.args.args if argument.arg not in skip]
    return f"{node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def _source(thing: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def _comment(node: ast.stmt, lines: list[str]) -> str:
    """What the code says of an attribute: behind it, or in the line before."""
    line = lines[(node.end_lineno or 1) - 1]
    before = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
    _, behind, text = line[node.end_col_offset or 0 :].partition("#")
    if not behind and before.startswith("#"):
        text = before.lstrip("#")
    return f": {text.strip()}" if text.strip() else ""


# --- what is declared -------------------------------------------------------------------------------------------------


def _keys(kind: str) -> Iterator[str]:
    """The keys of a table: what each has to be, and what it means."""
    record = {"model": ModelSpec, "option": DeclaredOption}.get(kind, Declared)
    lines, body = inspect.getsource(record).splitlines(), _source(record).body[0]
    assert isinstance(body, ast.ClassDef)
    said = {
        ast.unparse(node.target): _comment(node, lines)[2:] for node in body.body if isinstance(node, ast.AnnAssign)
    }
    for key, (needed, expected) in keys_of(kind).items():
        meaning = said[key].removeprefix("families only").lstrip(": ")
        expected = expected.replace(f": {declarations.NAME}", "").replace(declarations.NAME, "a name")
        yield f"- `{key}`{', **needed**' if needed else ''}: {expected}" + (f" ({meaning})" if meaning else "")


if __name__ == "__main__":
    print(reference(), end="")
