"""The catalogue: every model there is to load, merged over the plugins, before anything is loaded."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from zoo.errors import RequestError, UnknownName, nearest
from zoo.plugins import manager
from zoo.plugins.declarations import Declared
from zoo.plugins.declarations import ModelSpec as ModelSpec

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def catalogue() -> dict[str, ModelSpec]:
    """Return every model by the name to write: short where that is enough, else "plugin:name"."""
    return {
        manager.named(plugin.name, "model", spec.name): spec
        for plugin in manager.plugins_in_use()
        for spec in plugin.models
        if not manager.why_absent(spec.plugin)
    }


def models(
    *,
    modality: str | None = None,
    family: str | None = None,
    max_params: float | str | None = None,
    license: str | None = None,
) -> list[ModelSpec]:
    """Return the models that fit every filter given, in the catalogue's order.

    Args:
        max_params: the largest parameter count, as a number or as text such as "1.5B"; a model whose count is not known
            does not fit.
    """
    return list(fitting(modality=modality, family=family, max_params=max_params, license=license).values())


def fitting(
    *,
    modality: str | None = None,
    family: str | None = None,
    max_params: float | str | None = None,
    license: str | None = None,
) -> dict[str, ModelSpec]:
    """Return what `models` does, by the names to write."""
    limit = None if max_params is None else parse_count(max_params)
    return {
        name: spec
        for name, spec in catalogue().items()
        if (modality is None or spec.modality.casefold() == modality.casefold())
        and (family is None or spec.family.casefold() == family.casefold())
        and (limit is None or 0 < spec.params <= limit)  # an unknown count is not known to be small
        and (license is None or spec.license.casefold() == license.casefold())
    }


def info(name: str) -> ModelSpec:
    """Return what is known of one model, by its name, as "plugin:name", or as a name beyond the catalogue.

    A family may declare a prefix for all models its library builds: "timm:resnet18", or with arguments of the
    architecture "timm:vit_tiny_patch16_224?num_classes=10&img_size=32".

    Raises:
        UnknownName: there is no such model; names the nearest.
        RequestError: several plugins have a model of that name, and none of them is ours.
    """
    if ambiguity := manager.why_ambiguous("model", name):
        raise RequestError(f"Model {ambiguity}")
    specs = catalogue()
    if name in specs:
        return specs[name]
    if spec := _by_full_name(name) or _beyond(name):
        return spec
    raise UnknownName(
        _absent(name) or f"No model named {name!r}.{nearest(name, specs)} `zoo list` shows all {len(specs)}."
    )


def _by_full_name(name: str) -> ModelSpec | None:
    """The model that a plugin declares, or, in our own catalogue, one whose weights it has."""
    owner, _, short = name.partition(":")
    for plugin in manager.plugins_in_use():
        for spec in plugin.models:
            named = spec.name == short and manager.normalised(owner) in map(
                manager.normalised, (plugin.name, spec.plugin)
            )
            if named and not manager.why_absent(spec.plugin):
                return spec
    return None


def _absent(name: str) -> str:
    """Say that a model's plugin is installed but not used, or return ""."""
    prefix, colon, _ = name.partition(":")
    ours = next((spec.plugin for plugin in manager.plugins_in_use() for spec in plugin.models if spec.name == name), "")
    elsewhere = manager.unused("model", name) or manager.unused("prefix", prefix if colon else "")
    owner = ours or (elsewhere.name if elsewhere else prefix)
    reason = manager.why_absent(owner) if owner in manager.installed() else ""
    return f"Model {name!r} comes with plugin {owner}, which {reason}." if reason else ""


def _beyond(name: str) -> ModelSpec | None:
    """The spec of a name that a family's prefix covers; whether its library knows the name is seen when it is built."""
    family, rest = _family_beyond(name)
    if family is None:
        return None
    architecture, _, query = rest.partition("?")
    if not re.fullmatch(r"\w[\w.-]*", architecture):
        raise UnknownName(
            f"{name!r} names no model: write {family.prefix}:NAME, or {family.prefix}:NAME?argument=value."
        )
    arguments = dict(_argument(name, pair) for pair in query.split("&") if pair)
    config = {"architecture": architecture} | ({"model_args": arguments} if arguments else {})
    return ModelSpec(
        name, family.name, family.modality, family.task, plugin=family.plugin, summary=family.summary, config=config
    )


def _family_beyond(name: str) -> tuple[Declared | None, str]:
    """The family whose prefix a name begins with, "prefix:NAME" or "plugin:prefix:NAME", and what follows it."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        return None, ""
    if ambiguity := manager.why_ambiguous("prefix", prefix):
        raise RequestError(f"{name!r}: prefix {ambiguity}")
    owner = next(iter(manager.holders("prefix", prefix)), "")
    if not owner:
        owner, (prefix, _, rest) = prefix, rest.partition(":")
    return next(
        (declaration for declaration in manager.names_of(owner) if prefix and declaration.prefix == prefix), None
    ), rest


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
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", str(text).strip().replace("_", "").lower())
    if match is None:
        raise RequestError(f"{text!r} is not a parameter count. Write it like 135000000, 135M or 1.5B.")
    return round(float(match[1]) * _UNITS[match[2]])
