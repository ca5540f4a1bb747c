"""Finding plugins, reading what they declare, and importing one only when something of it is used.

Two entry-point groups. `zoo.catalog` names a package whose static `registry.toml` says what there is: it is found with
`find_spec` and read without importing anything. `zoo` names the pluggy module, imported by `load`. The plugins of this
distribution come in through the same two groups as anybody's.

Whatever is wrong with one plugin, its metadata included, becomes its `fault`: one line, and the others go on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import switches
from zoo.declarations import KINDS, Declared, ModelSpec, label, read
from zoo.errors import PluginError, UnknownName, listed, nearest, one_line
from zoo.installed import CORE as CORE
from zoo.installed import DISTRIBUTION as DISTRIBUTION
from zoo.installed import Entry, entries, origin_of
from zoo.installed import normalised as normalised

if TYPE_CHECKING:
    import pluggy

# The hook that registers each kind of name.
HOOKS = {
    "family": "register_families",
    "compressor": "register_compressors",
    "loss": "register_losses",
    "evaluator": "register_evaluators",
    "data": "register_data",
    "command": "register_commands",
}

Targets = dict[str, dict[str, str]]  # kind -> name -> "package.module:attribute"


@dataclass(frozen=True)
class Plugin:
    """An installed plugin and what it declares; `fault` is empty, or says what is wrong with it."""

    name: str
    distribution: str = ""
    version: str = ""
    path: Path | None = None  # the package's directory; None where it was not found
    module: str = ""  # the pluggy module, "package.module"; empty for a plugin that only declares models
    api: str = ""  # the range of plugin API versions it is made for
    models: tuple[ModelSpec, ...] = ()
    names: tuple[Declared, ...] = field(default=(), repr=False)
    fault: str = ""
    notes: tuple[str, ...] = ()  # worth knowing, but nothing is broken
    disabled: bool = False
    source: Distribution | None = field(default=None, repr=False, compare=False)

    @property
    def status(self) -> str:
        """One of "ok", "broken" (it has a fault) and "disabled"."""
        return "disabled" if self.disabled else "broken" if self.fault else "ok"

    @property
    def ours(self) -> bool:
        """Whether it comes with zoo itself, so that its names stay short whatever else is installed."""
        return self.distribution == DISTRIBUTION

    @property
    def origin(self) -> str:
        """Where it was installed from: a folder, a file or an address; empty when it came from an index."""
        return origin_of(self.source) if self.source else ""

    def declares(self, kind: str) -> tuple[str, ...]:
        """The names it declares of one kind: "model", the kinds in `KINDS`, and the "prefix" of a family's models."""
        if kind == "model":
            return tuple(spec.name for spec in self.models)
        if kind == "prefix":
            return tuple(declared.prefix for declared in self.names if declared.prefix)
        return tuple(declared.name for declared in self.names if declared.kind == kind)


# --- which there are --------------------------------------------------------------------------------------------------


def declared(*, disabled: bool = False) -> tuple[Plugin, ...]:
    """Every plugin in use, the core catalogue first, ours next; nothing is imported.

    A plugin that cannot be read stands in the list with its fault. A name that one of ours declares stays with ours; a
    name that two others declare belongs to neither, and both are reached as "plugin:name".

    Args:
        disabled: list the disabled ones as well.

    Raises:
        PluginError: ZOO_STRICT=1 and a plugin has a fault.
    """
    found = _in_use().plugins
    if os.environ.get("ZOO_STRICT", "") not in ("", "0"):
        for plugin in found:
            if plugin.fault:
                raise PluginError(f"Plugin {plugin.name}: {plugin.fault}")
    if not disabled:
        return found
    used, off = _in_use().by_name, _switched_off()
    everything = {
        key: replace(_read(entry), disabled=True) if key in off else used.get(key) for key, entry in entries().items()
    }
    return tuple(plugin for plugin in {**everything, **used}.values() if plugin)


def find(name: str) -> Plugin:
    """Return the plugin of that name, disabled or not; '-', '_' and '.' are alike in it.

    Raises:
        UnknownName: it is not installed, or ZOO_PLUGINS leaves it out.
    """
    plugins = {normalised(plugin.name): plugin for plugin in declared(disabled=True)}
    if plugin := plugins.get(normalised(name)):
        return plugin
    if entry := entries().get(normalised(name)):
        raise UnknownName(f"Plugin {entry.name!r} is installed, but ZOO_PLUGINS leaves it out.")
    near = nearest(name, [plugin.name for plugin in plugins.values()])
    raise UnknownName(f"No plugin named {name!r}.{near} `zoo plugins` shows all {len(plugins)}.")


def names_of(plugin: str) -> tuple[Declared, ...]:
    """Everything a plugin in use declares, but for models; nothing where there is no such plugin."""
    found = _in_use().by_name.get(normalised(plugin))
    return found.names if found else ()


def of_distribution(name: str) -> tuple[Plugin, ...]:
    """Return the plugins that come with a distribution, disabled or not."""
    return tuple(plugin for plugin in declared(disabled=True) if normalised(plugin.distribution) == normalised(name))


def installed() -> tuple[str, ...]:
    """The names of all installed plugins, whatever ZOO_PLUGINS says, and disabled or not."""
    return tuple(entry.name for entry in entries().values())


def holders(kind: str, name: str) -> tuple[str, ...]:
    """The plugins that a short name may mean: none, one, or several of which none is ours, so that it is ambiguous."""
    return _in_use().holders.get((kind, name), ())


def named(plugin: str, kind: str, name: str) -> str:
    """How the name that a plugin declares is written: short where that is enough, else "plugin:name"."""
    return name if holders(kind, name) == (plugin,) else f"{plugin}:{name}"


def why_ambiguous(kind: str, name: str) -> str:
    """Say that a short name may mean several things, and how each is written, or return ""."""
    return _ambiguity(name, holders(kind, name))


def why_absent(plugin: str) -> str:
    """Say why nothing of a plugin can be used, to follow "plugin x, which", or return "" where it is in use."""
    if normalised(plugin) in _in_use().by_name:
        return ""
    if normalised(plugin) not in entries():
        return "is not installed"
    return (
        f"is disabled: `zoo plugins enable {plugin}`"
        if normalised(plugin) in _switched_off()
        else "ZOO_PLUGINS leaves out"
    )


def unused(kind: str, name: str) -> Plugin | None:
    """Return the first installed plugin that declares a name but is disabled, or left out by ZOO_PLUGINS."""
    everything = (_read(entry) for entry in entries().values() if why_absent(entry.name))
    return next((plugin for plugin in everything if name in plugin.declares(kind)), None)


def refresh() -> None:
    """Forget what was found and loaded, so that plugins installed since are seen."""
    importlib.invalidate_caches()
    for cached in (_used, switches.read, _read, _ours, entries, _loaded):
        cached.cache_clear()
    _seconds.clear()


@dataclass(frozen=True)
class _Used:
    """The plugins in use, by their normalised names as well, and which of them a short name of a kind may mean."""

    plugins: tuple[Plugin, ...]
    by_name: dict[str, Plugin]
    holders: dict[tuple[str, str], tuple[str, ...]]


def _in_use() -> _Used:
    return _used(os.environ.get("ZOO_PLUGINS"), _switched_off())


@functools.cache
def _used(admitted: str | None, off: frozenset[str]) -> _Used:
    there = entries()
    if admitted is None:
        return _without_clashes([_read(entry) for key, entry in there.items() if key not in off])
    wanted = {normalised(name): name for name in map(str.strip, admitted.split(",")) if name}
    found = [_read(entry) for key, entry in there.items() if key in (CORE, *wanted)]
    missing = [name for key, name in wanted.items() if key not in there]
    found += [
        Plugin(name, fault=f"ZOO_PLUGINS names it, but it is not installed.{nearest(name, installed())}")
        for name in missing
    ]
    return _without_clashes(found)


def _without_clashes(plugins: list[Plugin]) -> _Used:
    """Say which plugin a short name means, and tell those that have to share one; nothing is renamed or overwritten."""
    owners: dict[tuple[str, str], list[Plugin]] = {}
    for plugin in plugins:
        for key in _keys(plugin):
            owners.setdefault(key, []).append(plugin)
    held = {key: tuple(p.name for p in (found[:1] if found[0].ours else found)) for key, found in owners.items()}
    shared = {key for key, found in owners.items() if len(found) > 1}
    told = tuple(_told(plugin, [key for key in _keys(plugin) if key in shared], held) for plugin in plugins)
    return _Used(told, {normalised(plugin.name): plugin for plugin in told}, held)


def _keys(plugin: Plugin) -> list[tuple[str, str]]:
    """Every (kind, name) of a plugin; what its families put before the names of their models is a kind as well."""
    return [(kind, name) for kind in ("model", *KINDS, "prefix") for name in plugin.declares(kind)]


def _told(plugin: Plugin, shared: list[tuple[str, str]], held: dict[tuple[str, str], tuple[str, ...]]) -> Plugin:
    """Give a plugin a fault for each name that ours keep, and a note for each that it shares with others."""
    faults, notes = [plugin.fault] if plugin.fault else [], []
    for kind, name in shared:
        first, *others = held[kind, name]
        if others:
            notes.append(f"{label(kind)} {_ambiguity(name, held[kind, name])}")
        elif first != plugin.name:
            faults.append(
                f"{label(kind)} {name!r} is already declared by plugin {first}; {plugin.name}'s is reached as '{plugin.name}:{name}'."
            )
    return replace(plugin, fault=" ".join(faults), notes=tuple(notes)) if faults or notes else plugin


def _ambiguity(name: str, owners: tuple[str, ...]) -> str:
    if len(owners) < 2:
        return ""
    ways = [f"'{owner}:{name}'" for owner in owners]
    return f"{name!r} is declared by plugins {listed(owners, 'and')}: write {listed(ways, 'or')}."


# --- which are switched off -------------------------------------------------------------------------------------------


disabled_file = switches.place


def disabled() -> frozenset[str]:
    """The names of the plugins this user has disabled; none where ZOO_PLUGINS says which to use."""
    return frozenset() if "ZOO_PLUGINS" in os.environ else switches.current().names


def disabled_fault() -> str:
    """Say what is wrong with the file of disabled plugins, or return ""."""
    return "" if "ZOO_PLUGINS" in os.environ else switches.current().fault


def disable(name: str) -> None:
    """Leave a plugin out from now on, for this user; nothing of it is imported.

    Raises:
        UnknownName: it is not installed.
        PluginError: it is the core, or the file of disabled plugins cannot be changed.
    """
    plugin = find(name)
    if normalised(plugin.name) == CORE:
        raise PluginError(f"Plugin {CORE} is the core, which everything else needs; it cannot be disabled.")
    _switch(disabled() | {plugin.name})


def enable(name: str) -> None:
    """Use a disabled plugin again; one that is in use already stays so.

    Raises:
        UnknownName: it is neither disabled nor installed.
        PluginError: the file of disabled plugins cannot be changed.
    """
    if normalised(name) not in map(normalised, disabled()):
        find(name)
    _switch(frozenset(one for one in disabled() if normalised(one) != normalised(name)))


def _switch(off: frozenset[str]) -> None:
    if "ZOO_PLUGINS" in os.environ:
        raise PluginError("ZOO_PLUGINS says which plugins are used; unset it to disable and enable them.")
    switches.write(off)
    refresh()


def _switched_off() -> frozenset[str]:
    """The normalised names of the disabled plugins; the core is never one."""
    off = disabled()
    return frozenset(map(normalised, off)) - {CORE} if off else off


# --- reading ----------------------------------------------------------------------------------------------------------


@functools.cache
def _read(entry: Entry) -> Plugin:
    """Read one plugin's declarations; whatever is wrong becomes its fault."""
    plugin = Plugin(
        entry.name, entry.distribution, entry.version, module=entry.module, fault=entry.fault, source=entry.source
    )
    if entry.fault:
        return plugin
    try:
        _require_module(entry)
        plugin = replace(plugin, path=_package(entry))
        found = read(_registry(plugin), plugin=entry.name, distribution=entry.distribution)
        if found.names and not plugin.module:
            first = found.names[0]
            raise PluginError(
                f"registry.toml declares {first.kind} {first.name!r}, but the distribution has no entry point "
                f"{entry.name!r} in the group 'zoo' that would register it."
            )
        for spec in found.models:
            _require_kin(entry, spec)
    except PluginError as error:
        return replace(plugin, fault=one_line(error))
    except Exception as error:  # a broken import finder, unreadable metadata: this plugin's, not everybody's
        return replace(plugin, fault=f"cannot be read: {one_line(error)}")
    return replace(plugin, api=found.api, models=found.models, names=found.names)


def _require_module(entry: Entry) -> None:
    if entry.module and not re.fullmatch(r"\w+(\.\w+)*(:\w+(\.\w+)*)?", entry.module):
        raise PluginError(
            f"its entry point in 'zoo' must name a module such as 'package.plugin', not {ascii(entry.module)[:80]}."
        )


def _require_kin(entry: Entry, spec: ModelSpec) -> None:
    """A model's `plugin` says whose package holds its weights: its own, or one that comes with the same distribution."""
    other = entries().get(normalised(spec.plugin))
    if normalised(spec.plugin) != normalised(entry.name) and (
        other is None or other.distribution != entry.distribution
    ):
        raise PluginError(
            f"model {spec.name!r}: plugin must be left out, or be another of {entry.distribution}'s, not {spec.plugin!r}."
        )


def _package(entry: Entry) -> Path:
    """Find the package's directory without importing it."""
    package = entry.catalog
    if not package:
        raise PluginError(f"no entry point {entry.name!r} in the group 'zoo.catalog' says where its registry.toml is.")
    if not package.isidentifier():
        raise PluginError(f"its entry point in 'zoo.catalog' must name a top-level package, not {ascii(package)[:80]}.")
    if owner := next((e.name for e in _ours() if e.catalog == package and entry.distribution != DISTRIBUTION), ""):
        raise PluginError(
            f"its entry point in 'zoo.catalog' names {package!r}, which is the package of plugin {owner}."
        )
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise PluginError(
            f"its package {package!r} is not there: install distribution {entry.distribution} again, or uninstall it."
        )
    for location in spec.submodule_search_locations or ():
        return Path(location)
    raise PluginError(f"{package!r} is a single module; a registry.toml needs a package to lie in.")


@functools.cache
def _ours() -> tuple[Entry, ...]:
    """The plugins that come with zoo itself."""
    return tuple(entry for entry in entries().values() if entry.distribution == DISTRIBUTION)


def _registry(plugin: Plugin) -> Path:
    assert plugin.path is not None
    inside, above = plugin.path / "registry.toml", plugin.path.parent / "registry.toml"
    # In a checkout our own catalogue is at the root; the wheel has it inside the package.
    return above if plugin.name == CORE and not inside.exists() and above.exists() else inside


# --- loading ----------------------------------------------------------------------------------------------------------


def load(name: str) -> Targets:
    """Import and register one plugin, and return the targets it registers: kind -> name -> "module:attribute".

    Raises:
        UnknownName: there is no such plugin.
        PluginError: it is disabled, cannot be imported, misuses a hook, or does not register exactly what it declares.
    """
    plugin = find(name)
    if plugin.disabled:
        raise PluginError(f"Plugin {plugin.name} {why_absent(plugin.name)}.")
    if plugin.fault and not plugin.names:
        raise PluginError(f"Plugin {plugin.name} cannot be used: {plugin.fault}")
    if not plugin.module:
        raise PluginError(f"Plugin {plugin.name} declares models only; there is nothing to load.")
    return _loaded(plugin)


def load_seconds() -> dict[str, float]:
    """How long each plugin took that this process has loaded, or tried to; what its names stand for comes later."""
    return dict(_seconds)


_seconds: dict[str, float] = {}


@functools.cache
def _loaded(plugin: Plugin) -> Targets:
    start = time.perf_counter()
    try:
        return _register(plugin)
    finally:
        _seconds[plugin.name] = time.perf_counter() - start


def _register(plugin: Plugin) -> Targets:
    entry = EntryPoint(plugin.name, plugin.module, "zoo")
    with _blaming(plugin, f"{plugin.module} cannot be imported"):
        module = entry.load()
    manager = _manager()
    with _blaming(plugin, "a hook does not fit"):
        manager.register(module, name=plugin.name)
        _require_known(manager)
    targets = {kind: _collect(plugin, manager, kind) for kind in KINDS}
    _compare(plugin, targets)
    return targets


def _manager() -> pluggy.PluginManager:
    """A manager for one plugin: none meets another's hooks, and two may name the same module."""
    import pluggy

    import zoo.hooks

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(zoo.hooks)
    return manager


def _require_known(manager: pluggy.PluginManager) -> None:
    """Refuse a misspelt hook, which pluggy would never call."""
    for name, hook in vars(manager.hook).items():
        if (
            not name.startswith("_")
            and not hook.has_spec()
            and not all(found.optionalhook for found in hook.get_hookimpls())
        ):
            raise PluginError(f"unknown hook {name!r}.{nearest(name, HOOKS.values())}")


def _collect(plugin: Plugin, manager: pluggy.PluginManager, kind: str) -> dict[str, str]:
    """Call the plugin's hook of one kind."""
    found: dict[str, str] = {}
    hook = HOOKS[kind]

    def register(name: str, target: str) -> None:
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise PluginError(f"target {target!r} of {name!r} is not of the form 'package.module:attribute'")
        if name in found:
            raise PluginError(f"{name!r} is registered twice")
        found[name] = target

    with _blaming(plugin, f"{hook} failed"):
        getattr(manager.hook, hook)(register=register)
    return found


def _compare(plugin: Plugin, targets: Targets) -> None:
    """What is declared and what is registered must be the same names."""
    for kind in KINDS:
        names, registered = set(plugin.declares(kind)), set(targets[kind])
        if missing := sorted(names - registered):
            raise PluginError(
                f"Plugin {plugin.name} declares {kind} {missing[0]!r} in its registry.toml, but {HOOKS[kind]} in "
                f"{plugin.module} does not register it.{nearest(missing[0], registered - names)}"
            )
        if extra := sorted(registered - names):
            raise PluginError(
                f"Plugin {plugin.name} registers {kind} {extra[0]!r} in {plugin.module}, but its registry.toml has "
                f"no [[{kind}]] of that name.{nearest(extra[0], names - registered)}"
            )


@contextlib.contextmanager
def _blaming(plugin: Plugin, what: str) -> Iterator[None]:
    """Turn whatever a plugin raises into a PluginError that names it; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well, and whatever else a plugin thinks of
        raise PluginError(f"Plugin {plugin.name} cannot be used: {what}: {one_line(error)}") from error
