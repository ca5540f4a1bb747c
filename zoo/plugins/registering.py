"""Importing a plugin and calling its hooks: what it registers has to be what it declares."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo.errors import PluginError, nearest, one_line
from zoo.plugins.kinds import KINDS, Kind
from zoo.system.signals import handlers_kept

if TYPE_CHECKING:
    import pluggy

    from zoo.hooks import Register
    from zoo.plugins.installed import Plugin


Targets = dict[str, dict[str, str]]  # kind -> name -> "package.module:attribute"


def load_seconds() -> dict[str, float]:
    """How long each plugin took that this process has loaded, or tried to; what its names stand for comes later."""
    return dict(seconds)


seconds: dict[str, float] = {}


@functools.cache
def registered(plugin: Plugin) -> Targets:
    start = time.perf_counter()
    try:
        with handlers_kept():
            return _register(plugin)
    finally:
        seconds[plugin.name] = time.perf_counter() - start


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

    manager = pluggy.PluginManager("zoo")
    hooks = ModuleType("hooks")
    vars(hooks).update({kind.hook: specification(kind) for kind in KINDS.values()})
    manager.add_hookspecs(hooks)
    return manager


def specification(kind: Kind) -> Any:
    """The hook of a kind, as pluggy wants it specified."""

    from zoo.hooks import hookspec

    def hook(register: Register) -> None: ...

    hook.__name__, hook.__doc__ = kind.hook, f"Add {kind.things}."
    return hookspec(hook)


def _require_known(manager: pluggy.PluginManager) -> None:
    """Refuse a misspelt hook, which pluggy would never call."""
    for name, hook in vars(manager.hook).items():
        if (
            not name.startswith("_")
            and not hook.has_spec()
            and not all(implementation.optionalhook for implementation in hook.get_hookimpls())
        ):
            raise PluginError(f"unknown hook {name!r}.{nearest(name, [kind.hook for kind in KINDS.values()])}")


def _collect(plugin: Plugin, manager: pluggy.PluginManager, kind: str) -> dict[str, str]:
    """Call the plugin's hook of one kind."""
    targets: dict[str, str] = {}
    hook = KINDS[kind].hook

    def register(name: str, target: str) -> None:
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute):
            raise PluginError(f"target {target!r} of {name!r} is not of the form 'package.module:attribute'")
        if name in targets:
            raise PluginError(f"{name!r} is registered twice")
        targets[name] = target

    with _blaming(plugin, f"{hook} failed"):
        getattr(manager.hook, hook)(register=register)
    return targets


def _compare(plugin: Plugin, targets: Targets) -> None:
    """What is declared and what is registered must be the same names."""
    for kind in KINDS:
        names, registered = set(plugin.declares(kind)), set(targets[kind])
        if missing := sorted(names - registered):
            raise PluginError(
                f"Plugin {plugin.name} declares {kind} {missing[0]!r} in its registry.toml, but {KINDS[kind].hook} in "
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
