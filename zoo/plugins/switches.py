"""Which plugins a user has switched off: a small file, read at every start and written by two commands."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import PluginError, reason
from zoo.system.reading import text_of


@dataclass(frozen=True)
class Switches:
    """What the file says."""

    names: frozenset[str] = frozenset()
    data: dict[str, Any] = field(default_factory=dict)  # all of it, so that what a later zoo adds is kept
    fault: str = ""


def switches_file() -> Path:
    """Where it is written which plugins this user has disabled.

    Raises:
        RuntimeError: this user has no home, and the environment names no other place.
    """
    return _switches_file(*map(os.environ.get, ("ZOO_CONFIG_DIR", "XDG_CONFIG_HOME", "HOME")))


@functools.cache
def _switches_file(own: str | None, config: str | None, home: str | None) -> Path:
    if own:
        return Path(own) / "plugins.json"
    return Path(config or Path.home() / ".config") / "zoo" / "plugins.json"


def current() -> Switches:
    """Return what the file says now, or that nothing is switched off where there is none."""
    try:
        return read(switches_file())
    except RuntimeError:
        return Switches()


@functools.cache
def read(path: Path) -> Switches:
    """Read the file; a damaged one switches nothing off, and has a fault."""
    if not os.path.lexists(path):
        return Switches()
    from json import loads

    try:
        data = loads(text_of(path, error=PluginError))
        names = data["disabled"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("'disabled' is not a list of names")
        return Switches(frozenset(names), data)
    except (PluginError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Switches(fault=f"{path} is damaged, so no plugin is disabled; mend or delete it ({reason(error)}).")


def write(names: frozenset[str]) -> None:
    """Write which plugins are off, whole or not at all.

    Raises:
        PluginError: the file is damaged, or cannot be written.
    """
    from json import dumps

    from zoo.system.writing import replace_file

    switches = current()
    if switches.fault:
        raise PluginError(switches.fault)
    if names == switches.names:
        return
    try:
        switches_file().parent.mkdir(parents=True, exist_ok=True)
        replace_file(switches_file(), dumps({**switches.data, "disabled": sorted(names)}, indent=1) + "\n")
    except (OSError, RuntimeError) as error:
        raise PluginError(
            f"the list of disabled plugins cannot be written: {getattr(error, 'strerror', None) or error}."
        ) from None
