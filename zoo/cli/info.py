"""`zoo info`: what is known of a model from its spec or its saved folder; no weight is loaded."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo import catalog
from zoo.cli import output
from zoo.errors import ArtifactError, RequestError, UnknownName, ZooError
from zoo.family.text.shape import BYTES_OF, Cache, cache_of, entries_of, shape_of
from zoo.family.text.tasks import named_after, task_named
from zoo.loading import weights
from zoo.loading.codes import QUANTIZED_KEYS, method_of
from zoo.loading.locate import Located, locate
from zoo.plugins.declarations import Declared, ModelSpec
from zoo.plugins.names import declaration, recognise
from zoo.system import quantities
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors
from zoo.tensors.gguf import read_header

# Bits a parameter takes; the packed formats' scales come on top (a few per cent).
FORMATS = {"fp32": 32, "bf16": 16, "int8": 8, "4-bit": 4}


def info(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Show what is known of a model, without loading it."""
    known = Knowledge.of(model)
    if json:
        output.print_json(known.to_json())
    else:
        output.print_facts(known.facts())


@dataclass(frozen=True)
class Knowledge:
    """What is known of a model: its spec, and the sizes that follow from it."""

    spec: ModelSpec
    source: str  # where its weights are
    extra: Mapping[str, Any]  # what else its manifest says
    shape: Mapping[str, int]
    memory: Mapping[str, int]  # bytes of the weights in each format
    cache: Cache
    dtype: str  # of what is in the cache

    @classmethod
    def of(cls, model: str) -> Knowledge:
        """Gather it for a name or a path."""
        spec, source, extra = _find(model)
        shape = extra.pop("shape", None)  # of a saved model whose stages changed it
        dtype = spec.dtype or "bfloat16"
        if shape is None:
            shape, cache = shape_of(spec.config), cache_of(spec.config, dtype=dtype)
        else:
            cache = Cache(shape.get("layers", 0) * entries_of(shape) * BYTES_OF.get(dtype, 2))
        if (
            not spec.task or not task_named(spec.task).writes
        ):  # cannot be loaded, or reads all at once and keeps nothing
            cache = Cache()
        packed = extra.get("bytes", math.inf) < spec.params * BYTES_OF.get(str(extra.get("stored")), 0)
        memory = {name: spec.params * bits // 8 for name, bits in FORMATS.items()} if spec.params and not packed else {}
        return cls(spec, source, extra, shape, memory, cache, dtype)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        cache = self.cache
        return {
            **self.spec.to_json(),
            **self.extra,
            "shape": self.shape,
            "weights": self.source,
            "memory_bytes": self.memory,
            "kv_cache_bytes_per_token": cache.per_token or None,
            "kv_cache_dtype": self.dtype if cache.per_token else None,
            "kv_cache_window": cache.window or None,
            "kv_cache_bytes_per_token_in_window": cache.in_window or None,
            "kv_cache_bytes_per_token_read": cache.read or None,
            "kv_cache_bytes_at_context": cache.at(self.shape.get("context", 0)) or None,
        }

    def facts(self) -> list[tuple[str, str]]:
        """Say it in lines, each under a label."""
        spec = self.spec
        return [
            ("name", spec.name),
            ("summary", spec.summary),
            ("modality", spec.modality),
            ("task", spec.task),
            ("family", spec.family),
            ("plugin", spec.plugin),
            ("licence", spec.license),
            ("paper", spec.paper),
            ("hub", f"{spec.hub} at {spec.revision}" if spec.revision else spec.hub),
            ("params", _params(spec)),
            ("shape", ", ".join(f"{key} {value}" for key, value in self.shape.items())),
            ("memory", ", ".join(f"{name} {quantities.size(size)}" for name, size in self.memory.items())),
            ("KV cache", self.cache.said(self.dtype, self.shape.get("context", 0))),
            ("weights", self.source),
            ("unknown", spec.unknown),
            ("missing", spec.missing),
            *((key, str(value)) for key, value in self.extra.items()),
        ]


def _params(spec: ModelSpec) -> str:
    inner = f" ({spec.params_non_embedding:,} without embeddings)" if spec.params_non_embedding else ""
    return f"{spec.params:,}{inner}" if spec.params else "unknown"


def _find(text: str) -> tuple[ModelSpec, str, dict[str, Any]]:
    """The spec behind a name or a path, where its weights are, and what else its manifest says."""
    try:
        located = locate(text)
    except UnknownName as error:
        if "/" in text or text.startswith((".", "~")):
            raise RequestError(f"There is no directory {text}, and no model of that name.") from error
        raise
    spec, path = located.spec, located.path
    if spec is not None:
        if spec not in catalog.catalogue().values():  # of a family's library, which knows what there is
            spec = _built(located)
        return spec, weights.describe(spec), {}
    assert path is not None
    if (path / "zoo.json").is_file():
        return _saved(path)
    if path.is_file():
        return _built(located), f"{path}: {read_header(path).said()}", {}
    for name in recognise(path):
        return _foreign(located, path, declaration("family", name))
    raise RequestError(f"{text} holds no model: neither zoo.json nor config.json is in it.")


def _built(model: Located) -> ModelSpec:
    """The spec of what `zoo.load` would build, its parameters counted on a skeleton."""
    from zoo.loading.load import load

    skeleton = load(model, device="meta")
    return replace(skeleton.spec, params=skeleton.params)


def _saved(path: Path) -> tuple[ModelSpec, str, dict[str, Any]]:
    """Read what the manifest of a saved model says; "shape" is there when stages made the config's sizes obsolete."""
    from zoo.artifact.manifest import checked_manifest

    manifest = checked_manifest(path)
    try:
        spec = ModelSpec(**manifest["spec"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path / 'zoo.json'} has no spec that this version of zoo can read: {error}.") from error
    stages = [stage.get("use", "?") for stage in manifest.get("lineage", []) if isinstance(stage, dict)]
    params = manifest.get("params")
    if isinstance(params, int) and params > 0:  # after the stages; the spec's count is the original's
        spec = replace(spec, params=params)
    if isinstance(manifest.get("dtype"), str):
        spec = replace(spec, dtype=manifest["dtype"])
    extra: dict[str, Any] = {
        "stages": ", ".join(stages) or "none",
        **{key: manifest[key] for key in ("bytes", "stored") if key in manifest},
    }
    if stages:
        left = manifest.get("shape")  # absent in models saved by an older zoo: then nothing is said
        kept = {name: size for name, size in shape_of(spec.config).items() if name in ("vocabulary", "context")}
        extra["shape"] = {**left, **kept} if isinstance(left, dict) else {}
    return spec, f"saved in {path}", extra


def _foreign(located: Located, path: Path, family: Declared) -> tuple[ModelSpec, str, dict[str, Any]]:
    """Say what the files of a plain checkpoint show."""
    marks = [mark.partition(":")[0] for mark in family.recognises]
    config = _read_json(next(path / mark for mark in marks if (path / mark).is_file()))
    files = safetensors.files_of(path) or sorted(path.rglob("*.safetensors"))
    codes = next((config[key] for key in QUANTIZED_KEYS if config.get(key)), None)
    params = sum(math.prod(entry["shape"]) for file in files for entry in safetensors.read_header(file).values())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    spec = ModelSpec(
        path.name,
        family.name,
        family.modality,
        family.task or _task(located, config),
        params=0 if codes else params,
        config=config,
        plugin=family.plugin,
        dtype=dtype,
    )
    source = f"codes of {method_of(codes)} in {path}, no weights" if codes else f"checkpoint in {path}"
    return spec, source if files else f"no safetensors in {path}", {}


def _task(located: Located, config: Mapping[str, Any]) -> str:
    """The task of a family of several: what the class is called tells most; else what loading would make of it does."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    # a folder of sentence-transformers names the class that was trained, head and all
    sentences = located.path is not None and (located.path / "modules.json").exists()
    if config.get("is_decoder") is not False and not sentences and (task := named_after(name, alone=True)):
        return task
    try:
        return _built(located).task
    except ZooError:
        return ""


def _read_json(file: Path) -> dict[str, Any]:
    text = text_of(file, error=ArtifactError, most=LARGEST_DATA)
    try:
        data = jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file} does not hold a JSON object.")
    return data
