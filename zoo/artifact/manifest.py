"""The manifest of an artifact, zoo.json: what it says, checked by hand so that `zoo info DIR` reads it without pydantic."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError
from zoo.model.provenance import problem_of_made, problem_of_source
from zoo.plugins.distributions import DISTRIBUTION
from zoo.system.hashing import CHUNK
from zoo.system.reading import LARGEST_DATA, text_of

if TYPE_CHECKING:
    from zoo.model.lineage import Stage


MANIFEST = "zoo.json"
WEIGHTS = "model.safetensors"
# how DISTRIBUTION was called when it was first recorded; an unrelated project has that name on the index
FORMER = "zoo"
FORMAT = 3  # 1 had no seal, 2 no xxh3 of files; both are still read
MOST = 10**15  # no model has so many parameters or bytes
FLOATS = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")  # that a tensor can have
PRECISIONS = ("float32", "bfloat16", "float16")  # that models run in and are stored in


@dataclass(frozen=True)
class Manifest:
    """What zoo.json says."""

    spec: ModelSpec
    lineage: tuple[Stage, ...]
    dtype: str
    stored: str
    files: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, Any]
    plain: str  # "" when the ecosystem's own library loads the directory too, otherwise why it does not
    family_plugin: str = ""  # what provides the family; empty in what an older zoo wrote
    # by name: the "distribution" and "version" it was made with
    plugins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # the original that the lineage begins with; empty in what an older zoo wrote
    source: Mapping[str, Any] = field(default_factory=dict)
    # by name: of the tensors that ran in another dtype than they are built in
    dtypes: Mapping[str, str] = field(default_factory=dict)


def read_manifest(path: Path) -> Manifest:
    """Read and validate the manifest of an artifact.

    Raises:
        RequestError, ArtifactError: as `checked_manifest`.
    """
    from zoo.model.lineage import lineage_of

    data = checked_manifest(path)
    try:
        return Manifest(
            spec=ModelSpec(**data["spec"]),
            lineage=lineage_of(map(_with_present_names, data["lineage"])),
            dtype=str(data["dtype"]),
            stored=str(data["stored"]),
            files=data["files"],
            notes=data["notes"],
            plain=str(data["plain"]),
            family_plugin=data.get("family_plugin", ""),
            source=data.get("source", {}),
            dtypes=data.get("dtypes", {}),
            plugins={name: _with_present_distribution(about) for name, about in data.get("plugins", {}).items()},
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path / MANIFEST} is damaged: {error}.") from None


def _with_present_names(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage of a lineage with the versions it was made with under the names that pip knows today."""
    if FORMER not in stage.get("made", {}).get("with", {}):
        return stage
    versions = {DISTRIBUTION if name == FORMER else name: text for name, text in stage["made"]["with"].items()}
    return {**stage, "made": {**stage["made"], "with": versions}}


def _with_present_distribution(about: Mapping[str, str]) -> Mapping[str, str]:
    return {**about, "distribution": DISTRIBUTION} if about.get("distribution") == FORMER else about


def checked_manifest(path: Path) -> dict[str, Any]:
    """Return what the manifest of an artifact says; nothing heavy is imported.

    Raises:
        RequestError: there is none.
        ArtifactError: it is damaged, or was written by a newer zoo.
    """
    file = path / MANIFEST
    if not os.path.lexists(file):
        raise RequestError(f"{path} holds no {MANIFEST}; it is not a zoo artifact.")
    text = text_of(file, error=ArtifactError, most=LARGEST_DATA)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is damaged: {error}.") from None
    if not isinstance(data, dict) or type(data.get("format")) is not int or data["format"] < 1:
        raise ArtifactError(f"{file} is damaged: no format version.")
    if data["format"] > FORMAT:
        raise ArtifactError(
            f"{file} has format {data['format']}; this zoo reads up to {FORMAT}: pip install --upgrade zoo-compress."
        )
    if problem := problem_of(data) or _broken_seal(data, text):
        raise ArtifactError(f"{file} is damaged: {problem}.")
    return data


def problem_of(data: Mapping[str, Any]) -> str:
    """Say what in a manifest is not as it is written, or return "". What is missing is found by whoever reads it."""
    for key, kind in {"spec": dict, "lineage": list, "files": dict, "notes": dict}.items():
        if not isinstance(data.get(key, kind()), kind):
            return f"{key!r} is {type(data[key]).__name__}, not {kind.__name__}"
    if not isinstance(data.get("family_plugin", ""), str):
        return "family_plugin is no name"
    dtypes = data.get("dtypes", {})
    if not isinstance(dtypes, dict) or not all(dtype in FLOATS for dtype in dtypes.values()):
        return "'dtypes' is no table of dtypes"
    if not isinstance(data.get("plugins", {}), dict) or not all(
        isinstance(about, dict) for about in data.get("plugins", {}).values()
    ):
        return "'plugins' is no table of tables"
    for key in ("dtype", "stored"):
        if data.get(key, PRECISIONS[0]) not in PRECISIONS:
            return f"{key} {data[key]!r} is none of {', '.join(PRECISIONS)}"
    if problem := _problem_of_spec(data.get("spec", {})):
        return problem
    for key, counts in {
        "params": [data.get("params", 0)],
        "bytes": [data.get("bytes", 0)],
        "shape": _values(data.get("shape", {})),
    }.items():
        if not all(type(count) is int and 0 <= count < MOST for count in counts):
            return f"{key!r} is not a count that a model can have"
    if problem := _problem_of_lineage(data.get("lineage", [])):
        return problem
    if problem := problem_of_source(data.get("source", {})):
        return problem
    return _problem_of_files(data.get("files"), chunked=data.get("format", FORMAT) > 2)


def _problem_of_files(files: Mapping[str, Any] | None, *, chunked: bool) -> str:
    for name, about in (files or {}).items():
        if (
            not isinstance(about, dict)
            or not isinstance(about.get("bytes"), int)
            or not isinstance(about.get("sha256"), str)
        ):
            return f"file {name!r} has no size and hash"
        chunks = about.get("xxh3", [] if chunked else None)
        if chunks is not None and not (isinstance(chunks, list) and len(chunks) == -(-about["bytes"] // CHUNK)):
            return f"file {name!r} has not one xxh3 for each {CHUNK:,} bytes"
    if files is not None and not any(name.endswith(".safetensors") for name in files):
        return "it lists no weight file"
    return ""


def _problem_of_lineage(stages: Sequence[Any]) -> str:
    for number, stage in enumerate(stages, 1):
        kinds = {"use": str, "version": int, "options": dict, "record": dict}
        wrong = [
            key for key, kind in kinds.items() if not isinstance(stage, dict) or not isinstance(stage.get(key), kind)
        ]
        if wrong:
            return f"stage {number} of the lineage has no {wrong[0]}"
        if not isinstance(stage.get("plugin", ""), str) or not isinstance(stage.get("seed", 0), int):
            return f"stage {number} of the lineage has a plugin or a seed that is none"
        if problem := problem_of_made(stage.get("made", {})):
            return f"stage {number} of the lineage: {problem}"
    return ""


def _problem_of_spec(spec: Mapping[str, Any]) -> str:
    kinds: dict[str, type] = {"params": int, "params_non_embedding": int, "config": dict, "sha256": dict}
    for key, value in spec.items():
        if not isinstance(value, kinds.get(key, str)):
            return f"{key!r} of the spec is {type(value).__name__}, not {kinds.get(key, str).__name__}"
    return "" if 0 <= spec.get("params", 0) < MOST else "'params' of the spec is not a count that a model can have"


def _values(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, dict) else [table]


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as it is written, with its own sha256 as its seal."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    dump = partial(json.dumps, indent=1, sort_keys=True, allow_nan=False)
    return dump({**rest, "seal": hashlib.sha256(dump(rest).encode()).hexdigest()}) + "\n"


def _broken_seal(data: Mapping[str, Any], text: str) -> str:
    """Say that a manifest is not as it was written, to the letter, or return ""."""
    try:
        return "" if data["format"] == 1 or manifest_text(data) == text else "it is not as it was written"
    except ValueError:  # a number that JSON does not have
        return "it is not as it was written"
