"""What is known of a plugin without importing it, as data and as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.plugins import kinds
from zoo.plugins.installed import Plugin
from zoo.plugins.names import is_present


def declares(plugin: Plugin) -> dict[str, list[str]]:
    """What a plugin declares: kind -> names."""
    return {kind: list(plugin.declares(kind)) for kind in kinds.tables()}


def counted(names_by_kind: Mapping[str, Sequence[str]]) -> str:
    """Say how much there is of each kind: "1 model, 9 compressors"."""
    return ", ".join(
        f"{len(names)} {kinds.label(kind) if len(names) == 1 else kinds.plural(kind)}"
        for kind, names in names_by_kind.items()
        if names
    )


def loadable(plugin: Plugin) -> bool:
    """Whether there is anything to load; one that only has a name refused still loads."""
    return bool(plugin.module and not plugin.disabled and (plugin.names or not plugin.fault))


def missing(plugin: Plugin) -> dict[str, list[str]]:
    """What the names of a plugin need and is not installed: "kind name" -> needs."""
    lacking = {f"{d.kind} {d.name}": [need for need in d.needs if not is_present(need)] for d in plugin.names}
    return {thing: needs for thing, needs in lacking.items() if needs}


def facts(plugin: Plugin) -> dict[str, Any]:
    """What is known of a plugin without importing it, as plain JSON data."""
    return {
        "name": plugin.name,
        "version": plugin.version,
        "distribution": plugin.distribution,
        "status": plugin.status,
        "fault": plugin.fault or None,
        "notes": list(plugin.notes),
        "path": str(plugin.path) if plugin.path else None,
        "module": plugin.module or None,
        "api": plugin.api or None,
        "declares": declares(plugin),
    }
