"""What a plugin declares in its `registry.toml`, read and checked without importing the plugin.

Checked by hand rather than with pydantic: this file is on the path of `zoo --help` and `zoo list`, which stay instant.
Anybody's file is read here, so its size is bounded before it is read, and no text in it can reach a terminal as more
than one line of plain characters.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import PluginError, nearest
from zoo.plugins import kinds
from zoo.system.reading import text_of, toml_of

API = 1  # the version of the hooks and of registry.toml; raised when plugins made for the old one no longer work
LONGEST = 500  # characters of a text in it
DEEPEST = 20  # tables inside tables
NAME = "at most 200 letters, digits, '.', '_' and '-', beginning with a letter or digit"


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before anything is loaded: one [[model]] table, or the same read from an artifact."""

    name: str
    family: str
    modality: str
    task: str
    params: int = 0  # exact; 0: not known
    params_non_embedding: int = 0  # without token table, untied head and learned positions; 0: not counted
    license: str = ""
    hub: str = ""
    revision: str = ""
    sha256: dict[str, str] = field(default_factory=dict, hash=False)  # file -> hash
    paper: str = ""
    summary: str = ""
    plugin: str = ""  # whose package holds the weights, and whose family it is where that plugin has one of the name
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = ""  # how it is run; empty: as stored
    packaged: str = ""  # where its weights are in that package, or among the files of `distribution`
    distribution: str = ""  # the Python package that holds the weights, where it is another than the plugin's
    unknown: str = ""  # what is not known of it, and why; without a config it cannot be built
    missing: str = ""  # what zoo does not have of it yet; its published weights are not fetched until then

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `ModelSpec(**data)` gives the same spec back."""
        return asdict(self)


@dataclass(frozen=True)
class DeclaredOption:
    """One [[option]]: what `zoo run` has a flag for, without importing the family whose `generate` takes it."""

    name: str  # as `generate` calls it; max_new_tokens is --max-new-tokens
    summary: str  # its help, where the class that has it says nothing closer
    plugin: str
    value: str = ""  # what stands after its flag, such as NUMBER or FILE; empty for a switch
    several: bool = False  # whether it may be given several times


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
    # families only: its `Options`, in a file that imports no torch, so that `zoo run MODEL --help` need not import the family
    options: str = ""
    license: str = ""  # of a data source's records, such as "CC-BY-4.0"
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)  # values of keys that only its kind has


@dataclass(frozen=True)
class Declarations:
    """Everything one `registry.toml` declares."""

    api: str = ""  # the range of plugin API versions it is made for, ">=1,<2"
    models: tuple[ModelSpec, ...] = ()
    names: tuple[Declared, ...] = ()
    options: tuple[DeclaredOption, ...] = ()


# --- values -----------------------------------------------------------------------------------------------------------

Check = Callable[[Any], str]  # what the value should have been, or "" where it is right

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_BOUND = re.compile(r"(>=|<=|==|<|>)\s*(\d{1,9})")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def covers(api: str, version: int = API) -> bool:
    """Whether a range such as ">=1,<2" holds a version."""
    bounds = [_BOUND.fullmatch(bound.strip()) for bound in api.split(",")]
    return all(bound is not None and _COMPARE[bound[1]](version, int(bound[2])) for bound in bounds)


def is_name(text: str) -> bool:
    """Whether a text can be the name of a plugin, a model, or anything else that is declared."""
    return _NAME.fullmatch(text) is not None


def is_inside(name: str) -> bool:
    """Whether a file name stays inside its folder: relative, without "..", written one way only."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and str(path) == name and "\\" not in name


def _api(value: Any) -> str:
    fits = isinstance(value, str) and all(_BOUND.fullmatch(bound.strip()) for bound in value.split(","))
    return "" if fits else f'the range of plugin API versions it is made for, such as "{_range()}"'


def _range() -> str:
    return f">={API},<{API + 1}"


def _text(value: Any) -> str:
    fits = isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()
    return "" if fits else f"one line of 1 to {LONGEST} printable characters"


def _name(value: Any) -> str:
    return "" if isinstance(value, str) and is_name(value) else NAME


def _full_name(value: Any) -> str:
    """A name, or "plugin:name"."""
    fits = isinstance(value, str) and value.count(":") <= 1 and all(map(is_name, value.split(":")))
    return "" if fits else f"a name or 'plugin:name': {NAME}"


def _target(value: Any) -> str:
    fits = isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value)
    return "" if fits and len(value) <= LONGEST else "'package.module:Class'"


def _argument(value: Any) -> str:
    fits = isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,39}", value) and not keyword.iskeyword(value)
    return "" if fits else "the name of an argument: lower-case letters, digits and '_', such as 'top_p'"


def _metavar(value: Any) -> str:
    fits = isinstance(value, str) and re.fullmatch(r"[A-Z][A-Z_-]{0,19}", value)
    return "" if fits else "a word in capitals, such as NUMBER"


def _truth(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _count(value: Any) -> str:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return "" if fits else "a whole number from 0 to 2**63 - 1"


def _texts(value: Any) -> str:
    fits = isinstance(value, list) and not any(_text(item) for item in value)
    return "" if fits else f'a list of texts, such as ["torchao"], each {_text(None)}'


def _marks(value: Any) -> str:
    fits = isinstance(value, list) and all(isinstance(item, str) and _is_mark(item) for item in value)
    return "" if fits else 'a list of files, each with a key in it or without, such as ["config.json:architecture"]'


def _is_mark(text: str) -> bool:
    file, colon, key = text.partition(":")
    return _is_file(file) and (not _text(key) if colon else True)


def _is_file(name: str) -> bool:
    """Whether a name is one file or folder inside another, and no pattern."""
    return (
        is_inside(name) and name != "." and len(name) <= LONGEST and name.isprintable() and not set(name) & set(":*?[]")
    )


def _hashes(value: Any) -> str:
    if not isinstance(value, dict):
        return "a table: file name = hash"
    if not all(isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) for digest in value.values()):
        return "a table of file names, each with a hash of 64 lower-case hexadecimal digits"
    return "" if all(map(_is_file, value)) else "a table of file names that stay inside the repository"


def _table(value: Any) -> str:
    if not isinstance(value, dict):
        return "a table"
    return "" if _is_json(value) else f"a table of values that JSON can hold, not nested deeper than {DEEPEST}"


def _is_json(value: Any, depth: int = 0) -> bool:
    """Whether a value of TOML is one of JSON as well: no date, no time, no inf, no nan, no integer beyond 64 bits."""
    if depth > DEEPEST:
        return False
    if isinstance(value, dict):
        return all(_is_json(item, depth + 1) for item in value.values())
    if isinstance(value, list):
        return all(_is_json(item, depth + 1) for item in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _dtype(value: Any) -> str:
    return "" if value in _DTYPES else f"one of {', '.join(_DTYPES)}"


def _folder(value: Any) -> str:
    return "" if isinstance(value, str) and _is_file(value) else "a relative folder inside the plugin's package"


def _distribution(value: Any) -> str:
    return "" if isinstance(value, str) and is_name(value) else "the name of a Python package"


_MODEL: dict[str, Check] = {
    "name": _name,
    "family": _full_name,
    "modality": _name,
    "task": _name,
    "params": _count,
    "license": _text,
    "summary": _text,
    "plugin": _name,
    "hub": _text,
    "revision": _text,
    "sha256": _hashes,
    "paper": _text,
    "config": _table,
    "dtype": _dtype,
    "packaged": _folder,
    "distribution": _distribution,
    "params_non_embedding": _count,
    "unknown": _text,
    "missing": _text,
}
_MODEL_NEEDED = ("name", "family", "modality", "task", "params", "license", "summary")
_OPTION: dict[str, Check] = {"name": _argument, "summary": _text, "value": _metavar, "several": _truth}
_ANY: dict[str, Check] = {"name": _name, "summary": _text, "needs": _texts}
_ANY_NEEDED = ("name", "summary")
# What a row of `kinds` calls the values of its own keys.
_VALUES: dict[str, Check] = {
    "name": _name,
    "text": _text,
    "texts": _texts,
    "marks": _marks,
    "count": _count,
    "target": _target,
}


def keys_of(kind: str) -> dict[str, tuple[bool, str]]:
    """The keys of a [[kind]] table, for each whether it is needed, and what its value has to be."""
    keys, needed = _keys_of(kind)
    return {key: (key in needed, check(None)) for key, check in keys.items()}


def _keys_of(kind: str) -> tuple[Mapping[str, Check], tuple[str, ...]]:
    if kind == kinds.MODEL:
        return _MODEL, _MODEL_NEEDED
    if kind == kinds.OPTION:
        return _OPTION, _ANY_NEEDED
    row = kinds.KINDS[kind]
    return {**_ANY, **{key: _VALUES[value] for key, value in row.keys.items()}}, (*_ANY_NEEDED, *row.needed)


# --- the file ---------------------------------------------------------------------------------------------------------


def read(path: Path, *, plugin: str, distribution: str = "") -> Declarations:
    """Read and check the `registry.toml` at `path` for the plugin of that name, which comes with a distribution.

    Raises:
        PluginError: the file cannot be read, is made for another plugin API, or a value does not fit; names the file,
            the table and the key.
    """
    tables = toml_of(text_of(path, error=PluginError), path, error=PluginError)
    api = _made_for(tables, path)
    if not covers(api):  # then nothing else in the file need mean what it means here
        raise PluginError(_misfit(api, distribution or plugin))
    _require_tables(tables, path)
    models = tuple(
        ModelSpec(**{"plugin": plugin, **_nulled(table)}) for table in _tables(tables, kinds.MODEL, path=path)
    )
    names: list[Declared] = []
    for kind in kinds.KINDS:
        names += [_declaration(kind, table, plugin=plugin) for table in _tables(tables, kind, path=path)]
    options = tuple(DeclaredOption(**table, plugin=plugin) for table in _tables(tables, kinds.OPTION, path=path))
    return Declarations(api, models, tuple(names), options)


def _declaration(kind: str, table: Mapping[str, Any], *, plugin: str) -> Declared:
    """One declaration; values of keys that only its kind has stand in `more`."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    more = {key: values.pop(key) for key in list(values) if key not in Declared.__dataclass_fields__}
    return Declared(kind=kind, plugin=plugin, **values, more=more)


def _nulled(table: dict[str, Any]) -> dict[str, Any]:
    """Write None where the config of a model says "null", at any depth: TOML has no word for it, and a default is not the same."""

    def without(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: without(value) if isinstance(value, dict) else None if value == "null" else value
            for key, value in values.items()
        }

    return {**table, "config": without(table["config"])} if "config" in table else table


def _made_for(tables: Mapping[str, Any], path: Path) -> str:
    """The range of plugin API versions that the file is made for."""
    if "api" not in tables:
        raise PluginError(
            f"{path}: 'api' is missing: write api = \"{_range()}\", {_api(None).partition(',')[0]}, as its first line."
        )
    if expected := _api(tables["api"]):
        raise PluginError(f"{path}: api must be {expected}, not {_shown(tables['api'])}.")
    return str(tables["api"])


def _misfit(api: str, distribution: str) -> str:
    from zoo import __version__

    newer = any(int(number) > API or sign == ">" for sign, number in _BOUND.findall(api))
    remedy = (
        f"upgrade zoo, or install a version of {distribution} made for it"
        if newer
        else f"install a newer version of {distribution}, or an older zoo"
    )
    return f"needs plugin API {api}, and this zoo {__version__} has {API}: {remedy}."


def _require_tables(tables: Mapping[str, Any], path: Path) -> None:
    known = kinds.tables()
    for key, value in tables.items():
        if key == "api":
            continue
        if key not in known:
            raise PluginError(f"{path}: {_shown(key)} is not a table.{nearest(key, known)} Tables: {', '.join(known)}.")
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise PluginError(f"{path}: {key!r} must be written as [[{key}]], one for each {key}.")


def _tables(tables: Mapping[str, Any], kind: str, *, path: Path) -> list[dict[str, Any]]:
    """Check every table of one kind: known keys, needed keys, values that fit, names that occur once."""
    keys, needed = _keys_of(kind)
    checked: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, table in enumerate(tables.get(kind, []), 1):
        where = f"{path}, [[{kind}]] {number}" + (f" ({table['name']})" if _name(table.get("name")) == "" else "")
        for key, value in table.items():
            if key not in keys:
                raise PluginError(f"{where}: {_shown(key)} is not a key.{nearest(key, keys)} Keys: {', '.join(keys)}.")
            if expected := keys[key](value):
                raise PluginError(f"{where}: {key} must be {expected}, not {_shown(value)}.")
        if missing := [key for key in needed if key not in table]:
            raise PluginError(f"{where}: {missing[0]!r} is missing. Needed keys: {', '.join(needed)}.")
        name = table["name"]
        if name in seen:
            raise PluginError(f"{where}: [[{kind}]] {seen[name]} has the same name {name!r}; a name occurs once.")
        seen[name] = number
        checked.append(dict(table))
    return checked


def _shown(value: Any) -> str:
    """A value in few and plain characters; nesting and length are the file's, so neither is trusted."""
    try:
        text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python writes
        return f"that {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
