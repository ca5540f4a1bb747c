"""Finding plugins, reading what they declare, and importing one only when something of it is used.

Two entry-point groups. `zoo.catalog` names a package whose static `registry.toml` says what there is: it is found with
`find_spec` and read without importing anything. `zoo` names the pluggy module, imported by `load`. The plugins of this
distribution come in through the same two groups as anybody's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.declarations import KINDS, Declared, ModelSpec, read
from zoo.errors import PluginError, UnknownName, nearest, one_line

if TYPE_CHECKING:
    import pluggy

CORE = "zoo"  # the framework's own catalogue and commands: always there, whatever ZOO_PLUGINS says

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
    models: tuple[ModelSpec, ...] = ()
    names: tuple[Declared, ...] = field(default=(), repr=False)
    fault: str = ""

    def declares(self, kind: str) -> tuple[str, ...]:
        """The names it declares of one kind ("model" and the kinds in `KINDS`)."""
        if kind == "model":
            return tuple(spec.name for spec in self.models)
        return tuple(declared.name for declared in self.names if declared.kind == kind)


# --- finding ----------------------------------------------------------------------------------------------------------


def declared() -> tuple[Plugin, ...]:
    """Every installed plugin that ZOO_PLUGINS admits, the core catalogue first; nothing is imported.

    A plugin that cannot be read stands in the list with its fault. A name that two plugins declare stays with the
    earlier one (our own, then alphabetically), and the later one carries a fault that names both.

    Raises:
        PluginError: ZOO_STRICT=1 and a plugin has a fault.
    """
    found = _declared(os.environ.get("ZOO_PLUGINS"))
    if os.environ.get("ZOO_STRICT", "") not in ("", "0"):
        for plugin in found:
            if plugin.fault:
                raise PluginError(f"Plugin {plugin.name}: {plugin.fault}")
    return found


def find(name: str) -> Plugin:
    """Return the plugin of that name.

    Raises:
        UnknownName: it is not installed, or ZOO_PLUGINS leaves it out.
    """
    plugins = {plugin.name: plugin for plugin in declared()}
    if name in plugins:
        return plugins[name]
    if name in installed():
        raise UnknownName(f"Plugin {name!r} is installed, but ZOO_PLUGINS leaves it out.")
    raise UnknownName(f"No plugin named {name!r}.{nearest(name, plugins)} `zoo plugins` shows all {len(plugins)}.")


def installed() -> tuple[str, ...]:
    """The names of all installed plugins, whatever ZOO_PLUGINS says."""
    return tuple(_entries())


def refresh() -> None:
    """Forget what was found and loaded, so that plugins installed since are seen."""
    for cached in (_declared, _entries, _loaded, _manager):
        cached.cache_clear()


@functools.cache
def _declared(admitted: str | None) -> tuple[Plugin, ...]:
    entries = _entries()
    found = [_read(name, entry) for name, entry in entries.items()]
    if admitted is not None:
        wanted = [name.strip() for name in admitted.split(",") if name.strip()]
        found = [plugin for plugin in found if plugin.name in (CORE, *wanted)]
        missing = [name for name in dict.fromkeys(wanted) if name not in entries]
        found += [Plugin(name, fault=f"ZOO_PLUGINS names it, but it is not installed.{nearest(name, entries)}")
                  for name in missing]  # fmt: skip
    return _without_clashes(found)


@dataclass(frozen=True)
class _Entry:
    """What the metadata of installed distributions says of one plugin name."""

    catalog: EntryPoint | None = None
    module: EntryPoint | None = None
    fault: str = ""


@functools.cache
def _entries() -> dict[str, _Entry]:
    """Every plugin name that is installed, in order of precedence: ours, then alphabetically."""
    groups = {group: list(entry_points(group=group)) for group in ("zoo.catalog", "zoo")}
    owners: dict[str, set[str]] = {}
    for entry in (entry for entries in groups.values() for entry in entries):
        owners.setdefault(entry.name, set()).add(_distribution(entry))
    found: dict[str, _Entry] = {}
    for name in sorted(owners, key=lambda name: (name != CORE, CORE not in owners[name], name)):
        owner, fault = _owner(name, owners[name])
        catalog, module = (
            next((e for e in entries if e.name == name and _distribution(e) == owner), None)
            for entries in groups.values()
        )
        found[name] = _Entry(catalog, module, fault)
    return found


def _owner(name: str, distributions: set[str]) -> tuple[str | None, str]:
    """Which distribution a plugin name belongs to, if any, and what to say when several take it."""
    if len(distributions) == 1:
        return next(iter(distributions)), ""
    others = " and ".join(sorted(distributions - {CORE}))
    if CORE in distributions:
        return CORE, f"distribution {others} takes the name {name!r} as well, and is refused; uninstall it."
    return None, f"distributions {others} both take the name {name!r}, and are refused; uninstall one of them."


def _distribution(entry: EntryPoint) -> str:
    return str(entry.dist.name) if entry.dist else ""


def _read(name: str, entry: _Entry) -> Plugin:
    """Read one plugin's declarations; whatever is wrong becomes its fault."""
    source = entry.catalog or entry.module
    if source is None:
        return Plugin(name, fault=entry.fault)
    plugin = Plugin(name, _distribution(source), str(source.dist.version) if source.dist else "",
                    module=entry.module.value if entry.module else "", fault=entry.fault)  # fmt: skip
    try:
        plugin = replace(plugin, path=_package(name, entry.catalog))
        found = read(_registry(plugin), plugin=name)
        if found.names and not plugin.module:
            first = found.names[0]
            raise PluginError(
                f"registry.toml declares {first.kind} {first.name!r}, but the distribution has no entry point "
                f"{name!r} in the group 'zoo' that would register it."
            )
    except PluginError as error:
        return replace(plugin, fault=one_line(error))
    except Exception as error:  # a broken import finder, unreadable metadata: this plugin's, not everybody's
        return replace(plugin, fault=f"cannot be read: {one_line(error)}")
    return replace(plugin, models=found.models, names=found.names)


def _package(name: str, catalog: EntryPoint | None) -> Path:
    """Find the package's directory without importing it."""
    if catalog is None:
        raise PluginError(f"no entry point {name!r} in the group 'zoo.catalog' says where its registry.toml is.")
    package = catalog.value
    if not package.isidentifier():
        raise PluginError(f"its entry point in 'zoo.catalog' must name a top-level package, not {package!r}.")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise PluginError(f"its package {package!r} is not installed.")
    for location in spec.submodule_search_locations or ():
        return Path(location)
    raise PluginError(f"{package!r} is a single module; a registry.toml needs a package to lie in.")


def _registry(plugin: Plugin) -> Path:
    assert plugin.path is not None
    inside, above = plugin.path / "registry.toml", plugin.path.parent / "registry.toml"
    # In a checkout our own catalogue is at the root; the wheel has it inside the package.
    return above if plugin.name == CORE and not inside.exists() and above.exists() else inside


def _without_clashes(plugins: list[Plugin]) -> tuple[Plugin, ...]:
    """Give the later of two plugins that declare one name a fault; nothing is renamed or overwritten."""
    owners: dict[tuple[str, str], str] = {}
    checked: list[Plugin] = []
    for plugin in plugins:
        clashes = [plugin.fault] if plugin.fault else []
        for kind in ("model", *KINDS):
            for name in plugin.declares(kind):
                owner = owners.setdefault((kind, name), plugin.name)
                if owner != plugin.name:
                    clashes.append(f"{kind} {name!r} is already declared by plugin {owner}; "
                                   f"{plugin.name}'s is reached as '{plugin.name}:{name}'.")  # fmt: skip
        for prefix in filter(None, (declared.prefix for declared in plugin.names)):
            owner = owners.setdefault(("prefix", prefix), plugin.name)
            if owner != plugin.name:
                clashes.append(f"prefix {prefix!r} is already declared by plugin {owner}; {plugin.name}'s is not used.")
        checked.append(replace(plugin, fault=" ".join(clashes)) if clashes else plugin)
    return tuple(checked)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(name: str) -> Targets:
    """Import and register one plugin, and return the targets it registers: kind -> name -> "module:attribute".

    Raises:
        UnknownName: there is no such plugin.
        PluginError: it cannot be imported, misuses a hook, or does not register exactly what it declares.
    """
    return _loaded(find(name))


@functools.cache
def _loaded(plugin: Plugin) -> Targets:
    if not plugin.module:
        raise PluginError(f"Plugin {plugin.name} {plugin.fault or 'declares models only; there is nothing to load.'}")
    entry = EntryPoint(plugin.name, plugin.module, "zoo")
    with _blaming(plugin, f"{plugin.module} cannot be imported"):
        module = entry.load()
    manager = _manager()
    try:
        with _blaming(plugin, "a hook does not fit"):
            manager.register(module, name=plugin.name)
            manager.check_pending()
        targets = {kind: _collect(plugin, kind) for kind in KINDS}
        _compare(plugin, targets)
    except PluginError:
        if manager.has_plugin(plugin.name):
            manager.unregister(name=plugin.name)
        raise
    return targets


@functools.cache
def _manager() -> pluggy.PluginManager:
    import pluggy

    import zoo.hooks

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(zoo.hooks)
    return manager


def _collect(plugin: Plugin, kind: str) -> dict[str, str]:
    """Call this plugin's hook of one kind, and no other plugin's."""
    found: dict[str, str] = {}
    hook = HOOKS[kind]

    def register(name: str, target: str) -> None:
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise PluginError(f"target {target!r} of {name!r} is not of the form 'package.module:attribute'")
        if name in found:
            raise PluginError(f"{name!r} is registered twice")
        found[name] = target

    manager = _manager()
    others = [module for name, module in manager.list_name_plugin() if name != plugin.name and module is not None]
    caller = manager.subset_hook_caller(hook, remove_plugins=others)
    with _blaming(plugin, f"{hook} failed"):
        caller(register=register)
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
    except (Exception, SystemExit) as error:
        raise PluginError(f"Plugin {plugin.name} cannot be used: {what}: {one_line(error)}") from error
