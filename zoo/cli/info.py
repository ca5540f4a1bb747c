"""`zoo info`: what is known of a model from its spec or its saved folder; nothing is loaded."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo import catalog, header, registry, weights
from zoo.cli import output
from zoo.declarations import ModelSpec
from zoo.errors import ArtifactError, RequestError, UnknownName
from zoo.reading import LARGEST_DATA, text_of

# Bits a parameter takes; the packed formats' scales come on top (a few per cent).
FORMATS = {"fp32": 32, "bf16": 16, "int8": 8, "4-bit": 4}

# What a config calls each thing, most common first.
_SHAPE = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim",),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
}
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def info(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Show what is known of a model, without loading it."""
    spec, source, extra = _find(model)
    shape = extra.pop("shape", None)  # of a saved model whose stages changed it
    dtype = spec.dtype or "bfloat16"
    if shape is None:
        shape, cache = shape_of(spec.config), cache_bytes_per_token(spec.config, dtype=dtype)
    else:
        cache = shape.get("layers", 0) * _entries(shape) * _BYTES.get(dtype, 2) or None
    packed = extra.get("bytes", math.inf) < spec.params * _BYTES.get(str(extra.get("stored")), 0)
    memory = {name: spec.params * bits // 8 for name, bits in FORMATS.items()} if spec.params and not packed else {}
    if json:
        output.print_json({**spec.to_json(), **extra, "shape": shape, "weights": source, "memory_bytes": memory,
                           "kv_cache_bytes_per_token": cache, "kv_cache_dtype": dtype if cache else None})  # fmt: skip
        return
    hub = f"{spec.hub} at {spec.revision}" if spec.revision else spec.hub
    output.print_facts([
        ("name", spec.name), ("summary", spec.summary), ("modality", spec.modality), ("task", spec.task),
        ("family", spec.family), ("plugin", spec.plugin), ("licence", spec.license), ("paper", spec.paper),
        ("hub", hub), ("params", f"{spec.params:,}" if spec.params else "unknown"),
        ("shape", ", ".join(f"{key} {value}" for key, value in shape.items())),
        ("memory", ", ".join(f"{name} {output.size(size)}" for name, size in memory.items())),
        ("KV cache", f"{output.size(cache)} per token in {dtype}" if cache else ""),
        ("weights", source), *((key, str(value)) for key, value in extra.items()),
    ])  # fmt: skip


def _find(text: str) -> tuple[ModelSpec, str, dict[str, Any]]:
    """The spec behind a name or a path, where its weights are, and what else its manifest says."""
    path = Path(text).expanduser()
    if text in catalog.catalogue() or not path.exists():
        try:
            spec = catalog.info(text)
        except UnknownName as error:
            if "/" in text or text.startswith((".", "~")):
                raise RequestError(f"There is no directory {text}, and no model of that name.") from error
            raise
        return spec, weights.describe(spec), {}
    if (path / "zoo.json").is_file():
        return _saved(path)
    for name in registry.recognise(path):
        return _foreign(path, registry.declared("family", name))
    raise RequestError(f"{text} holds no model: neither zoo.json nor config.json is in it.")


def _saved(path: Path) -> tuple[ModelSpec, str, dict[str, Any]]:
    """Read what the manifest of a saved model says; "shape" is there when stages made the config's sizes obsolete."""
    from zoo import artifact

    manifest = artifact.checked(path)
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
    extra: dict[str, Any] = {"stages": ", ".join(stages) or "none", **{key: manifest[key] for key in ("bytes", "stored") if key in manifest}}
    if stages:
        left = manifest.get("shape")  # absent in models saved by an older zoo: then nothing is said
        kept = {name: size for name, size in shape_of(spec.config).items() if name in ("vocabulary", "context")}
        extra["shape"] = {**left, **kept} if isinstance(left, dict) else {}
    return spec, f"saved in {path}", extra


def _foreign(path: Path, family: registry.Declared) -> tuple[ModelSpec, str, dict[str, Any]]:
    """Say what the files of a plain checkpoint show."""
    marks = [mark.partition(":")[0] for mark in family.recognises]
    config = _read_json(next(path / mark for mark in marks if (path / mark).is_file()))
    files = sorted(path.rglob("*.safetensors"))
    params = sum(math.prod(entry["shape"]) for file in files for entry in header.read(file).values())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    spec = ModelSpec(path.name, family.name, family.modality, family.task, params=params, config=config, plugin=family.plugin, dtype=dtype)
    return spec, f"checkpoint in {path}" if files else f"no safetensors in {path}", {}


def _read_json(file: Path) -> dict[str, Any]:
    text = text_of(file, error=ArtifactError, most=LARGEST_DATA)
    try:
        data = jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file} does not hold a JSON object.")
    return data


def shape_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Read the sizes of a language model from its config, whatever the config calls them."""
    config = _text_part(config)
    found = {name: next((_count(config, key) for key in keys if _count(config, key)), 0) for name, keys in _SHAPE.items()}
    if found["heads"]:
        found["kv_heads"] = found["kv_heads"] or (1 if config.get("multi_query") else found["heads"])
        found["head_dim"] = found["head_dim"] or found["width"] // found["heads"]
    return {name: size for name, size in found.items() if size}


def cache_bytes_per_token(config: Mapping[str, Any], *, dtype: str) -> int | None:
    """Count the bytes one token adds to the key-value cache, or None where the config does not say."""
    shape, config = shape_of(config), _text_part(config)
    layers = shape.get("layers", 0)
    kinds = config.get("layer_types")
    if isinstance(kinds, list):  # hybrids: only layers with softmax attention keep keys and values
        layers = sum(kind in ("full_attention", "sliding_attention", "chunked_attention") for kind in kinds)
    if _count(config, "kv_lora_rank"):  # DeepSeek-V2's latent attention caches one latent and one rotary key
        entries = _count(config, "kv_lora_rank") + _count(config, "qk_rope_head_dim")
    else:
        entries = _entries(shape)
    return layers * entries * _BYTES.get(dtype, 2) or None


def _count(config: Mapping[str, Any], key: str) -> int:
    """A size in a config, 0 where it says none that a model can have."""
    value = config.get(key)
    return value if type(value) is int and 0 < value < 10**9 else 0


def _entries(shape: Mapping[str, int]) -> int:
    """What one token leaves in the cache of one layer: a key and a value of every kv head."""
    return 2 * shape.get("kv_heads", 0) * shape.get("head_dim", 0)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own config, where a config holds several."""
    inner = config.get("text_config") or config.get("llm_config")
    return inner if isinstance(inner, Mapping) else config
