"""What a plugin declares in its `registry.toml`, read and checked without importing the plugin.

Checked by hand rather than with pydantic: this file is on the path of `zoo --help` and `zoo list`, which stay instant.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import PluginError, nearest

KINDS = ("family", "compressor", "loss", "evaluator", "data", "command")


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before anything is loaded: one [[model]] table, or the same read from an artifact."""

    name: str
    family: str
    modality: str
    task: str
    params: int = 0  # exact; 0: not known
    license: str = ""
    hub: str = ""
    revision: str = ""
    sha256: dict[str, str] = field(default_factory=dict, hash=False)  # file -> hash
    paper: str = ""
    summary: str = ""
    plugin: str = ""  # who provides the family and, for packaged models, the weights
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = ""  # how it is run; empty: as stored
    packaged: str = ""  # a folder inside the plugin's package

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `ModelSpec(**data)` gives the same spec back."""
        return asdict(self)


@dataclass(frozen=True)
class Declared:
    """One name a plugin declares, and what may be said of it without importing the plugin."""

    kind: str
    name: str
    summary: str
    plugin: str
    needs: tuple[str, ...] = ()  # distributions it cannot work without, as pip spells them
    modality: str = ""  # families only
    # families only: what marks a checkpoint directory as theirs: a file, or a key in it ("config.json:architecture")
    recognises: tuple[str, ...] = ()
    prefix: str = ""  # families only: "timm:NAME" is a model of theirs, whatever NAME is
    task: str = ""  # families only: of the models so named


@dataclass(frozen=True)
class Declarations:
    """Everything one `registry.toml` declares."""

    models: tuple[ModelSpec, ...] = ()
    names: tuple[Declared, ...] = ()


Check = Callable[[Any], str]  # what the value should have been, or "" where it is right

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DTYPES = ("float64", "float32", "bfloat16", "float16")


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and value else "a text that is not empty"


def _name(value: Any) -> str:
    fits = isinstance(value, str) and _NAME.fullmatch(value)
    return "" if fits else "letters, digits, '.', '_' and '-', beginning with a letter or digit"


def _count(value: Any) -> str:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return "" if fits else "a whole number that is not negative"


def _texts(value: Any) -> str:
    fits = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    return "" if fits else 'a list of texts, such as ["torchao"]'


def _hashes(value: Any) -> str:
    fits = isinstance(value, dict) and all(
        isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found) for found in value.values()
    )
    return "" if fits else "a table of file names, each with a hash of 64 lower-case hexadecimal digits"


def _table(value: Any) -> str:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # dates, times, inf and nan are TOML but not JSON
        return "a table of values that JSON can hold"
    return "" if isinstance(value, dict) else "a table"


def _dtype(value: Any) -> str:
    return "" if value in _DTYPES else f"one of {', '.join(_DTYPES)}"


def _folder(value: Any) -> str:
    inside = isinstance(value, str) and value and "\\" not in value and ":" not in value
    if inside and not PurePosixPath(value).is_absolute() and ".." not in PurePosixPath(value).parts:
        return ""
    return "a relative folder inside the plugin's package"


_MODEL: dict[str, Check] = {
    "name": _name, "family": _name, "modality": _name, "task": _name, "params": _count, "license": _text,
    "summary": _text, "plugin": _name, "hub": _text, "revision": _text, "sha256": _hashes, "paper": _text,
    "config": _table, "dtype": _dtype, "packaged": _folder,
}  # fmt: skip
_MODEL_NEEDED = ("name", "family", "modality", "task", "params", "license", "summary")
_ANY: dict[str, Check] = {"name": _name, "summary": _text, "needs": _texts}
_FAMILY: dict[str, Check] = {**_ANY, "modality": _name, "recognises": _texts, "prefix": _name, "task": _name}


def read(path: Path, *, plugin: str) -> Declarations:
    """Read and check the `registry.toml` at `path` for the plugin of that name.

    Raises:
        PluginError: the file cannot be read, or a value does not fit; names the file, the table and the key.
    """
    tables = _parse(path)
    models = tuple(
        ModelSpec(**{"plugin": plugin, **table})
        for table in _tables(tables, "model", keys=_MODEL, needed=_MODEL_NEEDED, path=path)
    )
    names: list[Declared] = []
    for kind in KINDS:
        keys, needed = (_FAMILY, ("name", "summary", "modality")) if kind == "family" else (_ANY, ("name", "summary"))
        for table in _tables(tables, kind, keys=keys, needed=needed, path=path):
            listed: dict[str, Any] = {key: tuple(table.pop(key)) for key in ("needs", "recognises") if key in table}
            names.append(Declared(kind=kind, plugin=plugin, **table, **listed))
    return Declarations(models, tuple(names))


def _parse(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(f"{path} is not valid TOML: {error}.") from error
    kinds = ("model", *KINDS)
    for key, value in tables.items():
        if key not in kinds:
            raise PluginError(f"{path}: {key!r} is not a table.{nearest(key, kinds)} Tables: {', '.join(kinds)}.")
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise PluginError(f"{path}: {key!r} must be written as [[{key}]], one for each {key}.")
    return tables


def _tables(
    tables: Mapping[str, Any], kind: str, *, keys: Mapping[str, Check], needed: tuple[str, ...], path: Path
) -> list[dict[str, Any]]:
    """Check every table of one kind: known keys, needed keys, values that fit, names that occur once."""
    found: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, table in enumerate(tables.get(kind, []), 1):
        where = f"{path}, [[{kind}]] {number}" + (f" ({table['name']})" if _name(table.get("name")) == "" else "")
        for key, value in table.items():
            if key not in keys:
                raise PluginError(f"{where}: {key!r} is not a key.{nearest(key, keys)} Keys: {', '.join(keys)}.")
            if expected := keys[key](value):
                raise PluginError(f"{where}: {key} must be {expected}, not {value!r}.")
        if missing := [key for key in needed if key not in table]:
            raise PluginError(f"{where}: {missing[0]!r} is missing. Needed keys: {', '.join(needed)}.")
        name = table["name"]
        if name in seen:
            raise PluginError(f"{where}: [[{kind}]] {seen[name]} has the same name {name!r}; a name occurs once.")
        seen[name] = number
        found.append(dict(table))
    return found
