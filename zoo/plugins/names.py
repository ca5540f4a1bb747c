"""Names to declarations, and to the object behind a name, which is imported when it is first used."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import PluginError, RequestError, UnknownName, ZooError, nearest, one_line
from zoo.plugins import kinds, manager
from zoo.plugins.declarations import Declared as Declared
from zoo.plugins.declarations import DeclaredOption
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.system.signals import handlers_kept

if TYPE_CHECKING:
    from zoo.plugins.declarations import ModelSpec


def of_kind(kind: str) -> dict[str, Declared]:
    """Return everything declared of a kind by the name to write: short where that is enough, else "plugin:name"."""
    everything = (entry for plugin in manager.plugins_in_use() for entry in plugin.names)
    return {name_to_write(entry): entry for entry in everything if entry.kind == kind}


def options_declared() -> dict[str, DeclaredOption]:
    """Return every option that `zoo run` has a flag for, by name; of several of one name the first, which is zoo's own where it has it."""
    declared: dict[str, DeclaredOption] = {}
    for plugin in manager.plugins_in_use():
        for option in plugin.options:
            declared.setdefault(option.name, option)
    return declared


def name_to_write(entry: Declared) -> str:
    """How a declared name is written: short where that is enough, else "plugin:name"."""
    return manager.named(entry.plugin, entry.kind, entry.name)


def declaration(kind: str, name: str, *, plugin: str = "") -> Declared:
    """Return the declaration of a name, also written "plugin:name".

    Args:
        plugin: whose it has to be, as a saved model says; whatever else has the name meanwhile is not taken.

    Raises:
        UnknownName: nothing of that kind has the name; names the nearest and lists what there is.
        RequestError: several plugins have it, and none of them is ours.
    """
    owner, short = (plugin, name) if plugin else _parted(name)
    if not owner:
        if ambiguity := manager.why_ambiguous(kind, short):
            raise RequestError(f"{_capital(kinds.label(kind))} {ambiguity}")
        owner = next(iter(manager.holders(kind, short)), "")
    for candidate in manager.names_of(owner):
        if (candidate.kind, candidate.name) == (kind, short):
            return candidate
    raise UnknownName(_unknown(kind, f"{plugin}:{name}" if plugin else name))


def _parted(name: str) -> tuple[str, str]:
    """("plugin", "name") of a full name, ("", "name") of a short one."""
    owner, _, short = name.rpartition(":")
    return owner, short


def _unknown(kind: str, name: str) -> str:
    """Say what is not there, and what there is."""
    if reason := why_unused(kind, name):
        return reason
    names = of_kind(kind)
    everything = f"{_capital(kinds.plural(kind))}: {', '.join(names) or 'none'}."
    unread = [plugin.name for plugin in manager.plugins_in_use() if plugin.fault and not plugin.names]
    hint = f" Plugin {', '.join(unread)} cannot be used; `zoo plugins` says why." if unread else ""
    return f"No {kinds.label(kind)} named {name!r}.{nearest(name, names)} {everything}{hint}"


def why_unused(kind: str, name: str) -> str:
    """Say that a name comes with a plugin that is not installed, disabled or left out, or return ""."""
    owner, short = _parted(name)
    if not owner and (elsewhere := manager.unused(kind, short)):
        owner = elsewhere.name
    reason = manager.why_absent(owner) if owner else ""
    return f"{_capital(kinds.label(kind))} {short!r} comes with plugin {owner}, which {reason}." if reason else ""


def is_known(kind: str, name: str) -> bool:
    """Whether a name, short or full, is one that is declared, if only by too many."""
    try:
        declaration(kind, name)
    except UnknownName:
        return False
    except RequestError:
        return True
    return True


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def plugin_of(kind: str, name: str) -> str:
    """Return the name of the plugin that provides a name."""
    return declaration(kind, name).plugin


def declaration_of(kind: str, thing: object, name: str) -> Declared:
    """Return what declared a compressor or a family that is at hand, under `name` where nothing tells more.

    Of several plugins' things of one name, it is the one of its class.

    Raises:
        UnknownName, RequestError: as `declaration`.
    """
    of_its_class = [key for key, other in _objects.items() if key.kind == kind and type(other) is type(thing)]
    if same := [key for key in of_its_class if _objects[key] is thing]:
        return same[0]
    if of_its_class:
        return next((key for key in of_its_class if key.name == name), of_its_class[0])
    target = f"{type(thing).__module__}:{type(thing).__qualname__}"
    for plugin in manager.plugins_in_use():
        for candidate in plugin.names:
            if (candidate.kind, candidate.name) == (kind, name) and _target(candidate) == target:
                return candidate
    return declaration(kind, name)


def _target(entry: Declared) -> str:
    with contextlib.suppress(PluginError):
        return manager.load(entry.plugin)[entry.kind][entry.name]
    return ""


def recognise(path: Path) -> list[str]:
    """Return the families that take a checkpoint, a directory or a file, for theirs: those that name a key in a file first."""
    marks = [(mark, name) for name, entry in of_kind("family").items() for mark in entry.recognises]
    marks.sort(key=lambda pair: ":" not in pair[0])
    return list(dict.fromkeys(name for mark, name in marks if _bears(path, mark)))


def _bears(path: Path, mark: str) -> bool:
    file, _, key = mark.partition(":")
    if path.is_file():  # a file is the whole checkpoint where a mark is its ending
        return path.suffix == mark
    if not key:
        return (path / file).exists()
    with contextlib.suppress(ZooError, ValueError, RecursionError):
        content = json.loads(text_of(path / file, error=ZooError, most=LARGEST_DATA))
        return isinstance(content, dict) and key in content
    return False


def family_declaration(spec: ModelSpec, *, plugin: str = "") -> Declared:
    """Return the declaration of a model's family: `plugin`'s if given, else its own plugin's if that has one, else any.

    Raises:
        UnknownName, RequestError: as `declaration`.
    """
    own = any((entry.kind, entry.name) == ("family", spec.family) for entry in manager.names_of(spec.plugin))
    short = _parted(spec.family)[1]
    return declaration("family", short if plugin else spec.family, plugin=plugin or (spec.plugin if own else ""))


def outside_distributions(*names: Declared) -> dict[str, str]:
    """The distributions, other than zoo's own, that declare names, and their versions: what is made with them depends on those."""
    makers = [manager.find(entry.plugin) for entry in names]
    return {maker.distribution: maker.version for maker in makers if not maker.ours}


def refresh() -> None:
    """Forget every name and object, so that plugins installed since are seen."""
    _objects.clear()
    manager.refresh()


_objects: dict[Declared, Any] = {}  # what has been resolved so far
_noting: list[set[Declared]] = []  # by those who want to know what is resolved


@contextlib.contextmanager
def used() -> Iterator[set[Declared]]:
    """Note what is resolved inside, by whatever name: a stage may leave it to a family which losses it takes."""
    entries: set[Declared] = set()
    _noting.append(entries)
    try:
        yield entries
    finally:
        _noting.pop()


def resolve(kind: str, name: str, *, plugin: str = "") -> Any:
    """Return the object behind a name, ready to use: a class is instantiated, once.

    Args:
        plugin: whose it has to be, as a saved model says; whatever else has the name meanwhile is not taken.

    Raises:
        UnknownName, RequestError: as `declaration`.
        PluginError: it cannot be imported, or is not what its kind has to be.
    """
    return object_of(declaration(kind, name, plugin=plugin))


def object_of(entry: Declared) -> Any:
    """Return the object behind a declaration, as `resolve` does."""
    for entries in _noting:
        entries.add(entry)
    if entry not in _objects:
        _objects[entry] = _checked(entry, _imported(entry))
    return _objects[entry]


def _checked(entry: Declared, thing: Any) -> Any:
    """Refuse what is no instance of the class that its kind has to be of, where the kind is strict about it."""
    kind = kinds.KINDS[entry.kind]
    if kind.strict:
        module, _, base = kind.contracts[0].partition(":")
        if not isinstance(thing, getattr(importlib.import_module(module), base)):
            target = manager.load(entry.plugin)[entry.kind][entry.name]
            raise PluginError(f"Plugin {entry.plugin}: {entry.kind} {entry.name!r} ({target}) is not a {base}.")
    return thing


def _imported(entry: Declared) -> Any:
    what = f"{_capital(entry.kind)} {entry.name!r} of plugin {entry.plugin}"
    if missing := [need for need in entry.needs if not is_present(need)]:
        raise PluginError(f"{what} needs {missing[0]}: pip install {' '.join(map(_quoted, missing))}")
    target = manager.load(entry.plugin)[entry.kind][entry.name]
    return _at(target, what, made=True)


def options_at(entry: Declared) -> Any:
    """The `Options` that a family's declaration names, imported without the family; None where it names none.

    Raises:
        PluginError: it cannot be imported.
    """
    what = f"`Options` of family {entry.name!r} of plugin {entry.plugin}"
    return _at(entry.options, what, made=False) if entry.options else None


def _at(target: str, what: str, *, made: bool) -> Any:
    """What stands at "module:attribute"; with `made`, of a class an instance."""
    module, _, attribute = target.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr), handlers_kept():
            thing: Any = importlib.import_module(module)
            for part in attribute.split("."):
                thing = getattr(thing, part)
            return thing() if made and isinstance(thing, type) else thing
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package and package != module.partition(".")[0]:
            raise PluginError(f"{what} needs {package}: pip install {package}") from error
        raise PluginError(f"{what} cannot be loaded from {target}: {one_line(error)}") from error
    except BaseException as error:  # SystemExit as well, and whatever else a plugin thinks of
        raise PluginError(f"{what} cannot be loaded from {target}: {one_line(error)}") from error


def is_present(need: str) -> bool:
    """Whether a needed distribution, or a module of that name, is installed."""
    match = re.match(r"[A-Za-z0-9._-]+", need)
    name = match[0] if match else need
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(name)
        return True
    top = name.replace("-", "_").partition(".")[0]
    with contextlib.suppress(ValueError):  # "__main__" has no spec
        return top.isidentifier() and importlib.util.find_spec(top) is not None
    return False


def _quoted(need: str) -> str:
    """Quote a requirement that a shell would read as something else."""
    return need if re.fullmatch(r"[A-Za-z0-9._-]+", need) else f"'{need}'"
