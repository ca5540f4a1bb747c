"""One installed plugin and what it declares, read without importing anything of it."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution
from pathlib import Path

from zoo.errors import PluginError, one_line
from zoo.plugins import kinds
from zoo.plugins.declarations import Declared, DeclaredOption, ModelSpec, read
from zoo.plugins.distributions import CORE as CORE
from zoo.plugins.distributions import DISTRIBUTION as DISTRIBUTION
from zoo.plugins.distributions import Entry, entries, origin_of
from zoo.plugins.distributions import normalised as normalised


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
    options: tuple[DeclaredOption, ...] = field(default=(), repr=False)
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
        """The names it declares of one kind: those of its tables, and the "prefix" of a family's models."""
        if kind == kinds.MODEL:
            return tuple(spec.name for spec in self.models)
        if kind == kinds.OPTION:
            return tuple(option.name for option in self.options)
        if kind == "prefix":
            return tuple(declaration.prefix for declaration in self.names if declaration.prefix)
        return tuple(declaration.name for declaration in self.names if declaration.kind == kind)


@functools.cache
def read_plugin(entry: Entry) -> Plugin:
    """Read one plugin's declarations; whatever is wrong becomes its fault."""
    plugin = Plugin(
        entry.name, entry.distribution, entry.version, module=entry.module, fault=entry.fault, source=entry.source
    )
    if entry.fault:
        return plugin
    try:
        _require_module(entry)
        plugin = replace(plugin, path=_package(entry))
        declarations = read(_registry(plugin), plugin=entry.name, distribution=entry.distribution)
        if declarations.names and not plugin.module:
            first = declarations.names[0]
            raise PluginError(
                f"registry.toml declares {first.kind} {first.name!r}, but the distribution has no entry point "
                f"{entry.name!r} in the group 'zoo' that would register it."
            )
        for spec in declarations.models:
            _require_kin(entry, spec)
    except PluginError as error:
        return replace(plugin, fault=one_line(error))
    except Exception as error:  # a broken import finder, unreadable metadata: this plugin's, not everybody's
        return replace(plugin, fault=f"cannot be read: {one_line(error)}")
    return replace(
        plugin,
        api=declarations.api,
        models=declarations.models,
        names=declarations.names,
        options=declarations.options,
    )


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
    if owner := next((e.name for e in built_in() if e.catalog == package and entry.distribution != DISTRIBUTION), ""):
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
def built_in() -> tuple[Entry, ...]:
    """The plugins that come with zoo itself."""
    return tuple(entry for entry in entries().values() if entry.distribution == DISTRIBUTION)


def _registry(plugin: Plugin) -> Path:
    assert plugin.path is not None
    inside, above = plugin.path / "registry.toml", plugin.path.parent / "registry.toml"
    # In a checkout our own catalogue is at the root; the wheel has it inside the package.
    return above if plugin.name == CORE and not inside.exists() and above.exists() else inside
