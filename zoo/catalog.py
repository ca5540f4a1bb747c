"""The catalogue: every model there is to load, merged over the plugins, before anything is loaded."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from zoo import plugins, registry
from zoo.declarations import ModelSpec as ModelSpec
from zoo.errors import RequestError, UnknownName, nearest

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def catalogue() -> dict[str, ModelSpec]:
    """Return every model by name; of two plugins that declare one name, the earlier keeps it."""
    found: dict[str, ModelSpec] = {}
    for plugin in plugins.declared():
        for spec in plugin.models:
            if not _left_out(spec):
                found.setdefault(spec.name, spec)
    return found


def models(
    *,
    modality: str | None = None,
    family: str | None = None,
    max_params: float | str | None = None,
    license: str | None = None,
) -> list[ModelSpec]:
    """Return the models that fit every filter given, in the catalogue's order.

    Args:
        max_params: the largest parameter count, as a number or as text such as "1.5B".
    """
    limit = None if max_params is None else parse_count(max_params)
    return [
        spec
        for spec in catalogue().values()
        if (modality is None or spec.modality.casefold() == modality.casefold())
        and (family is None or spec.family.casefold() == family.casefold())
        and (limit is None or spec.params <= limit)
        and (license is None or spec.license.casefold() == license.casefold())
    ]


def info(name: str) -> ModelSpec:
    """Return what is known of one model, by its name, as "plugin:name", or as a name beyond the catalogue.

    A family may declare a prefix for all models its library builds: "timm:resnet18", or with arguments of the
    architecture "timm:vit_tiny_patch16_224?num_classes=10&img_size=32".

    Raises:
        UnknownName: there is no such model; names the nearest.
    """
    found = catalogue()
    if name in found:
        return found[name]
    owner, _, rest = name.rpartition(":")
    everything = [(plugin.name, spec) for plugin in plugins.declared() for spec in plugin.models]
    for plugin, spec in everything:
        if owner in (plugin, spec.plugin) and spec.name == rest and not _left_out(spec):
            return spec
    for _, spec in everything:
        if spec.name == name:
            raise UnknownName(f"Model {name!r} comes with plugin {spec.plugin}, which ZOO_PLUGINS leaves out.")
    if beyond := _beyond(name):
        return beyond
    raise UnknownName(f"No model named {name!r}.{nearest(name, found)} `zoo list` shows all {len(found)}.")


def _beyond(name: str) -> ModelSpec | None:
    """The spec of a name that a family's prefix covers; whether its library knows the name is seen when it is built."""
    prefix, colon, rest = name.partition(":")
    owner = next((d for d in registry.names("family").values() if colon and d.prefix == prefix), None)
    if owner is None:
        return None
    architecture, _, query = rest.partition("?")
    if not re.fullmatch(r"\w[\w.-]*", architecture):
        raise UnknownName(f"{name!r} names no model: write {prefix}:NAME, or {prefix}:NAME?argument=value.")
    arguments = dict(_argument(name, pair) for pair in query.split("&") if pair)
    config = {"architecture": architecture} | ({"model_args": arguments} if arguments else {})
    return ModelSpec(name, owner.name, owner.modality, owner.task, plugin=owner.plugin, summary=owner.summary, config=config)


def _argument(name: str, pair: str) -> tuple[str, Any]:
    """Read "num_classes=10"; a value is JSON where it can be, else text."""
    key, equals, value = pair.partition("=")
    if not equals or not key.isidentifier():
        raise UnknownName(f"{name!r}: {pair!r} is not of the form argument=value, such as num_classes=10.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def parse_count(text: float | str) -> int:
    """Read a parameter count such as 135000000, 1.35e8, "135M" or "1.5B".

    Raises:
        RequestError: the text is not a count.
    """
    if isinstance(text, int | float) and math.isfinite(text):
        return int(text)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", str(text).strip().replace("_", "").lower())
    if found is None:
        raise RequestError(f"{text!r} is not a parameter count. Write it like 135000000, 135M or 1.5B.")
    return round(float(found[1]) * _UNITS[found[2]])


def _left_out(spec: ModelSpec) -> bool:
    """Whether the plugin that provides the model is installed, but not admitted by ZOO_PLUGINS."""
    admitted = {plugin.name for plugin in plugins.declared()}
    return spec.plugin not in admitted and spec.plugin in plugins.installed()
