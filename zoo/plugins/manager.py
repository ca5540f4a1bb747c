"""Finding plugins, reading what they declare, and importing one only when something of it is used.

Two entry-point groups. `zoo.catalog` names a package whose static `registry.toml` says what there is: it is found with
`find_spec` and read without importing anything. `zoo` names the pluggy module, imported by `load`. The plugins of this
distribution come in through the same two groups as anybody's.

Whatever is wrong with one plugin, its metadata included, becomes its `fault`: one line, and the others go on.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zoo.errors import PluginError, UnknownName, listed, nearest
from zoo.plugins import kinds, switches
from zoo.plugins.declarations import Declared
from zoo.plugins.distributions import CORE as CORE
from zoo.plugins.distributions import DISTRIBUTION as DISTRIBUTION
from zoo.plugins.distributions import entries
from zoo.plugins.distributions import normalised as normalised
from zoo.plugins.installed import Plugin, built_in, read_plugin
from zoo.plugins.registering import registered, seconds

if TYPE_CHECKING:
    from zoo.plugins.registering import Targets


# --- which there are --------------------------------------------------------------------------------------------------


def plugins_in_use(*, disabled: bool = False) -> tuple[Plugin, ...]:
    """Every plugin in use, the core catalogue first, ours next; nothing is imported.

    A plugin that cannot be read stands in the list with its fault. A name that one of ours declares stays with ours; a
    name that two others declare belongs to neither, and both are reached as "plugin:name".

    Args:
        disabled: list the disabled ones as well.

    Raises:
        PluginError: ZOO_STRICT=1 and a plugin has a fault.
    """
    plugins = _in_use().plugins
    if os.environ.get("ZOO_STRICT", "") not in ("", "0"):
        for plugin in plugins:
            if plugin.fault:
                raise PluginError(f"Plugin {plugin.name}: {plugin.fault}")
    if not disabled:
        return plugins
    used, off = _in_use().by_name, _switched_off()
    everything = {
        key: replace(read_plugin(entry), disabled=True) if key in off else used.get(key)
        for key, entry in entries().items()
    }
    return tuple(plugin for plugin in {**everything, **used}.values() if plugin)


def find(name: str) -> Plugin:
    """Return the plugin of that name, disabled or not; '-', '_' and '.' are alike in it.

    Raises:
        UnknownName: it is not installed, or ZOO_PLUGINS leaves it out.
    """
    plugins = {normalised(plugin.name): plugin for plugin in plugins_in_use(disabled=True)}
    if plugin := plugins.get(normalised(name)):
        return plugin
    if entry := entries().get(normalised(name)):
        raise UnknownName(f"Plugin {entry.name!r} is installed, but ZOO_PLUGINS leaves it out.")
    near = nearest(name, [plugin.name for plugin in plugins.values()])
    raise UnknownName(f"No plugin named {name!r}.{near} `zoo plugins` shows all {len(plugins)}.")


def names_of(plugin: str) -> tuple[Declared, ...]:
    """Everything a plugin in use declares, but for models; nothing where there is no such plugin."""
    owner = _in_use().by_name.get(normalised(plugin))
    return owner.names if owner else ()


def of_distribution(name: str) -> tuple[Plugin, ...]:
    """Return the plugins that come with a distribution, disabled or not."""
    return tuple(
        plugin for plugin in plugins_in_use(disabled=True) if normalised(plugin.distribution) == normalised(name)
    )


def installed() -> tuple[str, ...]:
    """The names of all installed plugins, whatever ZOO_PLUGINS says, and disabled or not."""
    return tuple(entry.name for entry in entries().values())


def is_installed(name: str) -> bool:
    """Whether a plugin of that name is installed, in use or not."""
    return normalised(name) in entries()


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
    everything = (read_plugin(entry) for entry in entries().values() if why_absent(entry.name))
    return next((plugin for plugin in everything if name in plugin.declares(kind)), None)


def refresh() -> None:
    """Forget what was found and loaded, so that plugins installed since are seen."""
    importlib.invalidate_caches()
    for cached in (_used, switches.read, read_plugin, built_in, entries, registered):
        cached.cache_clear()
    seconds.clear()


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
        return _without_clashes([read_plugin(entry) for key, entry in there.items() if key not in off])
    wanted = {normalised(name): name for name in map(str.strip, admitted.split(",")) if name}
    plugins = [read_plugin(entry) for key, entry in there.items() if key in (CORE, *wanted)]
    missing = [name for key, name in wanted.items() if key not in there]
    plugins += [
        Plugin(name, fault=f"ZOO_PLUGINS names it, but it is not installed.{nearest(name, installed())}")
        for name in missing
    ]
    return _without_clashes(plugins)


def _without_clashes(plugins: list[Plugin]) -> _Used:
    """Say which plugin a short name means, and tell those that have to share one; nothing is renamed or overwritten."""
    owners: dict[tuple[str, str], list[Plugin]] = {}
    for plugin in plugins:
        for key in _keys(plugin):
            owners.setdefault(key, []).append(plugin)
    owner_names = {
        key: tuple(p.name for p in (rivals[:1] if rivals[0].ours else rivals)) for key, rivals in owners.items()
    }
    shared = {key for key, rivals in owners.items() if len(rivals) > 1}
    told = tuple(_told(plugin, [key for key in _keys(plugin) if key in shared], owner_names) for plugin in plugins)
    return _Used(told, {normalised(plugin.name): plugin for plugin in told}, owner_names)


def _keys(plugin: Plugin) -> list[tuple[str, str]]:
    """Every (kind, name) of a plugin; what its families put before the names of their models is a kind as well.

    Several may have an option of one name: each is asked of its own models.
    """
    told_apart = (*(kind for kind in kinds.tables() if kind != kinds.OPTION), "prefix")
    return [(kind, name) for kind in told_apart for name in plugin.declares(kind)]


def _told(plugin: Plugin, shared: list[tuple[str, str]], owner_names: dict[tuple[str, str], tuple[str, ...]]) -> Plugin:
    """Give a plugin a fault for each name that ours keep, and a note for each that it shares with others."""
    faults, notes = [plugin.fault] if plugin.fault else [], []
    for kind, name in shared:
        first, *others = owner_names[kind, name]
        if others:
            notes.append(f"{kinds.label(kind)} {_ambiguity(name, owner_names[kind, name])}")
        elif first != plugin.name:
            faults.append(
                f"{kinds.label(kind)} {name!r} is already declared by plugin {first}; {plugin.name}'s is reached as '{plugin.name}:{name}'."
            )
    return replace(plugin, fault=" ".join(faults), notes=tuple(notes)) if faults or notes else plugin


def _ambiguity(name: str, owners: tuple[str, ...]) -> str:
    if len(owners) < 2:
        return ""
    ways = [f"'{owner}:{name}'" for owner in owners]
    return f"{name!r} is declared by plugins {listed(owners, 'and')}: write {listed(ways, 'or')}."


# --- which are switched off -------------------------------------------------------------------------------------------


disabled_file = switches.switches_file


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
    _switch(frozenset(other for other in disabled() if normalised(other) != normalised(name)))


def _switch(off: frozenset[str]) -> None:
    if "ZOO_PLUGINS" in os.environ:
        raise PluginError("ZOO_PLUGINS says which plugins are used; unset it to disable and enable them.")
    switches.write(off)
    refresh()


def _switched_off() -> frozenset[str]:
    """The normalised names of the disabled plugins; the core is never one."""
    off = disabled()
    return frozenset(map(normalised, off)) - {CORE} if off else off


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
    return registered(plugin)
