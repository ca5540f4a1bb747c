"""The typed door: from a name to a Compressor, a Family, and whatever else plugins register."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from zoo.plugins.names import family_declaration, object_of, resolve

if TYPE_CHECKING:
    from zoo.compressor import Compressor
    from zoo.family.base import Family
    from zoo.plugins.declarations import ModelSpec


def compressor(name: str, *, plugin: str = "") -> Compressor:
    """Return the compressor of that name, ready to use; with `plugin`, that plugin's and no other's."""
    return cast("Compressor", resolve("compressor", name, plugin=plugin))


def family(name: str, *, plugin: str = "") -> Family:
    """Return the family of that name, ready to use; with `plugin`, that plugin's and no other's."""
    return cast("Family", resolve("family", name, plugin=plugin))


def family_of(spec: ModelSpec, *, plugin: str = "") -> Family:
    """Return the family of a model, which is looked for as `family_declaration` does."""
    return cast("Family", object_of(family_declaration(spec, plugin=plugin)))


def loss(name: str) -> Any:
    """Return the training loss of that name: a RowLoss or a FeatureLoss."""
    return resolve("loss", name)


def evaluator(name: str) -> Any:
    """Return the evaluator of that name: an object with `measure(model, data, *, options)`."""
    return resolve("evaluator", name)


def data_source(name: str) -> Any:
    """Return the data source of that name."""
    return resolve("data", name)


def command(name: str) -> Any:
    """Return the function behind a command."""
    return resolve("command", name)
