"""Names to things: what the plugins declare, and the object behind a name, imported when it is first used."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zoo import plugins
from zoo.declarations import Declared as Declared
from zoo.errors import PluginError, UnknownName, nearest, one_line

if TYPE_CHECKING:
    from zoo.compressor import Compressor
    from zoo.family import Family

_PLURALS = {"family": "Families", "data": "Data sources"}


def names(kind: str) -> dict[str, Declared]:
    """Return every declared name of a kind; of two plugins that declare one name, the earlier keeps it."""
    found: dict[str, Declared] = {}
    for plugin in plugins.declared():
        for declared in plugin.names:
            if declared.kind == kind:
                found.setdefault(declared.name, declared)
    return found


def declared(kind: str, name: str) -> Declared:
    """Return the declaration of a name, also written "plugin:name".

    Raises:
        UnknownName: nothing of that kind has the name; names the nearest and lists what there is.
    """
    found = names(kind)
    if name in found:
        return found[name]
    owner, _, rest = name.rpartition(":")
    for plugin in plugins.declared():
        for candidate in plugin.names:
            if (plugin.name, candidate.kind, candidate.name) == (owner, kind, rest):
                return candidate
    label = "data source" if kind == "data" else kind
    everything = f"{_PLURALS.get(kind, kind.capitalize() + 's')}: {', '.join(found) or 'none'}."
    unread = [plugin.name for plugin in plugins.declared() if plugin.fault and not plugin.names]
    hint = f" Plugin {', '.join(unread)} cannot be used; `zoo plugins` says why." if unread else ""
    raise UnknownName(f"No {label} named {name!r}.{nearest(name, found)} {everything}{hint}")


def plugin_of(kind: str, name: str) -> str:
    """Return the name of the plugin that provides a name."""
    return declared(kind, name).plugin


def recognise(path: Path) -> list[str]:
    """Return the families that take a checkpoint directory for theirs, those that name a key in a file first."""
    marks = [(mark, name) for name, found in names("family").items() for mark in found.recognises]
    marks.sort(key=lambda pair: ":" not in pair[0])
    return list(dict.fromkeys(name for mark, name in marks if _bears(path, mark)))


def _bears(path: Path, mark: str) -> bool:
    file, _, key = mark.partition(":")
    if not key:
        return (path / file).exists()
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / file).read_text(encoding="utf-8"))
        return isinstance(found, dict) and key in found
    return False


def compressor(name: str) -> Compressor:
    """Return the compressor of that name, ready to use."""
    from zoo.compressor import Compressor

    return cast(Compressor, _checked("compressor", name, Compressor))


def family(name: str) -> Family:
    """Return the family of that name, ready to use."""
    from zoo.family import Family

    return cast(Family, _checked("family", name, Family))


def loss(name: str) -> Any:
    """Return the training loss of that name."""
    return _resolve(declared("loss", name))


def evaluator(name: str) -> Any:
    """Return the evaluator of that name: an object with `measure(model, data, *, options)`."""
    return _resolve(declared("evaluator", name))


def data_source(name: str) -> Any:
    """Return the data source of that name."""
    return _resolve(declared("data", name))


def command(name: str) -> Any:
    """Return the function behind a command."""
    return _resolve(declared("command", name))


def refresh() -> None:
    """Forget every name and object, so that plugins installed since are seen."""
    _resolve.cache_clear()
    plugins.refresh()


def _checked(kind: str, name: str, base: type) -> object:
    found = declared(kind, name)
    thing = _resolve(found)
    if not isinstance(thing, base):
        target = plugins.load(found.plugin)[kind][found.name]
        raise PluginError(f"Plugin {found.plugin}: {kind} {found.name!r} ({target}) is not a {base.__name__}.")
    return thing


@functools.cache
def _resolve(found: Declared) -> Any:
    """Import the target of a declared name; a class is instantiated, once."""
    label = f"{found.kind.capitalize()} {found.name!r} of plugin {found.plugin}"
    if missing := [need for need in found.needs if not _present(need)]:
        raise PluginError(f"{label} needs {missing[0]}: pip install {' '.join(map(_quoted, missing))}")
    target = plugins.load(found.plugin)[found.kind][found.name]
    module, _, attribute = target.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            thing: Any = importlib.import_module(module)
            for part in attribute.split("."):
                thing = getattr(thing, part)
            return thing() if isinstance(thing, type) else thing
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package and package != module.partition(".")[0]:
            raise PluginError(f"{label} needs {package}: pip install {package}") from error
        raise PluginError(f"{label} cannot be loaded from {target}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(f"{label} cannot be loaded from {target}: {one_line(error)}") from error


def _present(need: str) -> bool:
    """Whether a needed distribution, or a module of that name, is installed."""
    match = re.match(r"[A-Za-z0-9._-]+", need)
    name = match[0] if match else need
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(name)
        return True
    top = name.replace("-", "_").partition(".")[0]
    return top.isidentifier() and importlib.util.find_spec(top) is not None


def _quoted(need: str) -> str:
    """Quote a requirement that a shell would read as something else."""
    return need if re.fullmatch(r"[A-Za-z0-9._-]+", need) else f"'{need}'"
