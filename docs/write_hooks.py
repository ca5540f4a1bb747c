"""The reference of hooks, written from the hooks, the contracts and the built-in plugins: `python docs/write_hooks.py`."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from zoo import evaluator, hooks, registry
from zoo.data.dataset import Source
from zoo.family.base import Family
from zoo.plugins import declarations, manager
from zoo.plugins.declarations import API, KINDS, Declared, ModelSpec, keys_of
from zoo.plugins.names import name_to_write, of_kind
from zoo.plugins.registering import HOOKS

PROTOCOLS: dict[str, type] = {"evaluator": evaluator.Evaluator, "data": Source}  # of what needs no base class

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
    sections = [INTRODUCTION, *(_hook(kind) for kind in KINDS), _models()]
    return "\n".join(sections)


def _hook(kind: str) -> str:
    name, users = HOOKS[kind], [found for found in of_kind(kind).values() if manager.find(found.plugin).ours]
    function = getattr(hooks, name)
    sentence, _, call = str(inspect.getdoc(function)).partition(": call ")
    signature = _source(function).body[0]
    assert isinstance(signature, ast.FunctionDef)
    lines = [
        f"## {name}",
        "",
        f"{sentence}.",
        "",
        "```python",
        "@hookimpl",
        f"def {_signature(signature, skip=())}:",
        "    " + call.removesuffix(" for each"),
        "```",
        "",
        "### What is registered",
        "",
        *_contract(kind, users),
        "",
        f"### `[[{kind}]]` in registry.toml",
        "",
        *_keys(kind),
        "",
        "### Used by",
        "",
        *(f"- {found.plugin}: `{found.name}`, `{_target(found)}`" for found in users),
        "",
    ]
    return "\n".join(lines)


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


def _target(found: Declared) -> str:
    return manager.load(found.plugin)[found.kind][found.name]


# --- what is registered -----------------------------------------------------------------------------------------------


def _contract(kind: str, users: list[Declared]) -> Iterator[str]:
    """What a registered thing has to be: a base class, a protocol, or a function."""
    if kind == "command":
        yield "A function whose parameters typer can read from a command line, or a `typer.Typer` with commands of its own."
        return
    if kind in PROTOCOLS:
        yield from _described(PROTOCOLS[kind], "An object like")
        return
    bases = _bases(kind, users)
    roots = [base for base in bases if not any(other in bases for other in base.__mro__[1:])]
    for base in roots:
        yield from ([""] if base is not roots[0] else [])
        yield from _described(base, "A subclass of" if base is roots[0] else "Or a subclass of")
        for inner in (inner for inner in bases if base in inner.__mro__[1:]):
            needed = ", ".join(f"`{name}`" for name in sorted(inner.__abstractmethods__))
            yield ""
            yield f"`{_public_name(inner)}`: {_sentence(inner)} It leaves to write: {needed}."


def _bases(kind: str, users: list[Declared]) -> list[Any]:
    """The abstract classes behind the built-in things of a kind; of families, also those of each modality."""
    found = {base: None for user in users for base in reversed(type(_thing(user)).__mro__) if inspect.isabstract(base)}
    public = [base for base in found if base.__module__.startswith("zoo.") or base.__base__ not in found]
    return public if kind != "family" else sorted(public, key=lambda base: (base is not Family, base.__qualname__))


def _thing(user: Declared) -> Any:
    return {"family": registry.family, "compressor": registry.compressor, "loss": registry.loss}[user.kind](
        name_to_write(user)
    )


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
                ", **needed**"
                if node.name in getattr(base, "__abstractmethods__", ()) or base in PROTOCOLS.values()
                else ""
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


def _sentence(base: type) -> str:
    return str(inspect.getdoc(base)).partition("\n")[0]


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
    record = ModelSpec if kind == "model" else Declared
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
