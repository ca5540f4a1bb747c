"""`zoo info`: what is known of a model from its spec or its saved folder; nothing is loaded."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo import catalog, weights
from zoo.cli import output
from zoo.errors import ArtifactError, RequestError, UnknownName
from zoo.plugins.declarations import Declared, ModelSpec
from zoo.plugins.names import declaration, recognise
from zoo.system import quantities
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors

# Bits a parameter takes; the packed formats' scales come on top (a few per cent).
FORMATS = {"fp32": 32, "bf16": 16, "int8": 8, "4-bit": 4}

# What a config calls each thing, most common first.
_SHAPE = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "d_kv"),
    "ffn": ("intermediate_size", "ff_intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active_experts": ("num_experts_per_tok",),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
}
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def info(model: output.ModelArgument, json: output.JsonOption = False) -> None:
    """Show what is known of a model, without loading it."""
    spec, source, extra = _find(model)
    shape = extra.pop("shape", None)  # of a saved model whose stages changed it
    dtype = spec.dtype or "bfloat16"
    if shape is None:
        shape, cache = shape_of(spec.config), cache_of(spec.config, dtype=dtype)
    else:
        cache = Cache(shape.get("layers", 0) * _entries(shape) * _BYTES.get(dtype, 2))
    if spec.task == "masked-lm":  # reads a text as a whole, and keeps nothing of it
        cache = Cache()
    packed = extra.get("bytes", math.inf) < spec.params * _BYTES.get(str(extra.get("stored")), 0)
    memory = {name: spec.params * bits // 8 for name, bits in FORMATS.items()} if spec.params and not packed else {}
    if json:
        output.print_json(
            {
                **spec.to_json(),
                **extra,
                "shape": shape,
                "weights": source,
                "memory_bytes": memory,
                "kv_cache_bytes_per_token": cache.per_token or None,
                "kv_cache_dtype": dtype if cache.per_token else None,
                "kv_cache_window": cache.window or None,
                "kv_cache_bytes_per_token_in_window": cache.in_window or None,
                "kv_cache_bytes_per_token_read": cache.read or None,
                "kv_cache_bytes_at_context": cache.at(shape.get("context", 0)) or None,
            }
        )
        return
    hub = f"{spec.hub} at {spec.revision}" if spec.revision else spec.hub
    output.print_facts(
        [
            ("name", spec.name),
            ("summary", spec.summary),
            ("modality", spec.modality),
            ("task", spec.task),
            ("family", spec.family),
            ("plugin", spec.plugin),
            ("licence", spec.license),
            ("paper", spec.paper),
            ("hub", hub),
            ("params", _params(spec)),
            ("shape", ", ".join(f"{key} {value}" for key, value in shape.items())),
            ("memory", ", ".join(f"{name} {quantities.size(size)}" for name, size in memory.items())),
            ("KV cache", cache.said(dtype, shape.get("context", 0))),
            ("weights", source),
            ("unknown", spec.unknown),
            *((key, str(value)) for key, value in extra.items()),
        ]
    )


@dataclass(frozen=True)
class Cache:
    """The bytes of keys and values that a model keeps while it generates."""

    per_token: int = 0  # of the text that it writes, in all layers
    in_window: int = 0  # those of them in layers that only see a window
    window: int = 0  # tokens, of which those layers keep no more
    read: int = 0  # per token of the text that an encoder read, for the cross-attention

    def at(self, tokens: int) -> int:
        """The bytes after that many tokens."""
        return (self.per_token - self.in_window) * tokens + self.in_window * min(tokens, self.window or tokens)

    def said(self, dtype: str, context: int) -> str:
        """Say it in a line; "" where nothing is kept, or the config does not say."""
        if not self.per_token:
            return ""
        parts = [f"{quantities.size(self.per_token)} per token in {dtype}"]
        if self.window:
            part = "all" if self.in_window == self.per_token else quantities.size(self.in_window)
            parts[0] += f" ({part} of it only for the last {self.window} tokens)"
        if self.read:
            parts.append(f"and {quantities.size(self.read)} per token read")
        if context:
            parts.append(f"{quantities.size(self.at(context))} at {context} tokens")
        return ", ".join(parts)


def _params(spec: ModelSpec) -> str:
    inner = f" ({spec.params_non_embedding:,} without embeddings)" if spec.params_non_embedding else ""
    return f"{spec.params:,}{inner}" if spec.params else "unknown"


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
    for name in recognise(path):
        return _foreign(path, declaration("family", name))
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
    extra: dict[str, Any] = {
        "stages": ", ".join(stages) or "none",
        **{key: manifest[key] for key in ("bytes", "stored") if key in manifest},
    }
    if stages:
        left = manifest.get("shape")  # absent in models saved by an older zoo: then nothing is said
        kept = {name: size for name, size in shape_of(spec.config).items() if name in ("vocabulary", "context")}
        extra["shape"] = {**left, **kept} if isinstance(left, dict) else {}
    return spec, f"saved in {path}", extra


def _foreign(path: Path, family: Declared) -> tuple[ModelSpec, str, dict[str, Any]]:
    """Say what the files of a plain checkpoint show."""
    marks = [mark.partition(":")[0] for mark in family.recognises]
    config = _read_json(next(path / mark for mark in marks if (path / mark).is_file()))
    files = sorted(path.rglob("*.safetensors"))
    params = sum(math.prod(entry["shape"]) for file in files for entry in safetensors.read_header(file).values())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    spec = ModelSpec(
        path.name,
        family.name,
        family.modality,
        family.task,
        params=params,
        config=config,
        plugin=family.plugin,
        dtype=dtype,
    )
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
    found = {
        name: next((_count(config, key) for key in keys if _count(config, key)), 0) for name, keys in _SHAPE.items()
    }
    if found["heads"]:
        found["kv_heads"] = found["kv_heads"] or (1 if config.get("multi_query") else found["heads"])
        found["head_dim"] = found["head_dim"] or found["width"] // found["heads"]
    if "n_embd" in config or "expansion_ratio" in config:  # GPT-2 and MPT, whose FFN is a multiple of the width
        found["ffn"] = found["ffn"] or (_count(config, "expansion_ratio") or 4) * found["width"]
    if not found["experts"]:
        found["active_experts"] = 0
    return {name: size for name, size in found.items() if size}


def cache_of(config: Mapping[str, Any], *, dtype: str) -> Cache:
    """Count the bytes that tokens leave in the key-value cache; none where the config does not say."""
    shape, config = shape_of(config), _text_part(config)
    window = _count(config, "sliding_window") if config.get("use_sliding_window") is not False else 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):  # hybrids: only layers with softmax attention keep keys and values
        layers = sum(kind in ("full_attention", "sliding_attention", "chunked_attention") for kind in kinds)
        windowed = sum(kind == "sliding_attention" for kind in kinds)
    else:
        layers = windowed = shape.get("decoder_layers", 0) or shape.get("layers", 0)
    if not 0 < window < shape.get("context", window + 1):
        windowed = 0
    if _count(config, "kv_lora_rank"):  # DeepSeek-V2's latent attention caches one latent and one rotary key
        entries = _count(config, "kv_lora_rank") + _count(config, "qk_rope_head_dim")
    else:
        entries = _entries(shape)
    each = entries * _BYTES.get(dtype, 2)
    reads = bool(shape.get("decoder_layers"))
    return Cache(layers * each, windowed * each, window if windowed else 0, layers * each if reads else 0)


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
