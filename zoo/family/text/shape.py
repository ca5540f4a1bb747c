"""The shape of a language model as its config tells it, and the memory of its cache; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.anatomy import names
from zoo.system import quantities

_SHAPE = {
    "layers": names.LAYERS,
    "width": names.WIDTH,
    "heads": names.HEADS,
    "kv_heads": names.KV_HEADS,
    "head_dim": names.HEAD_SIZE,
    "ffn": names.FFN_WIDTH,
    "experts": names.EXPERTS,
    "active_experts": names.EXPERTS_PER_TOKEN,
    "vocabulary": names.VOCABULARY,
    "context": names.CONTEXT,
    "decoder_layers": names.DECODER_LAYERS,
}


BYTES_OF = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


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


def frequency_switches(module: Any) -> tuple[int, ...]:
    """The lengths beyond which LongRoPE takes its long factors (Ding et al. 2024, 2402.13753); () without LongRoPE.

    Keys that a cache holds from a shorter text were turned by the short factors, so beyond it all is read anew.
    """
    config: Any = getattr(module, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    rope = getattr(text, "rope_parameters", None) or {}
    tables = [table for table in (rope, *rope.values()) if isinstance(table, Mapping)]  # some have one a kind of layer
    switching = [t for t in tables if t.get("rope_type") == "longrope" or "long_mscale" in t]
    return tuple({int(t["original_max_position_embeddings"]) for t in switching})


def shape_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Read the sizes of a language model from its config, whatever the config calls them."""
    config = _text_part(config)
    sizes = {name: _first(config, called.configs) for name, called in _SHAPE.items()}
    if sizes["heads"]:
        # Falcon's config counts key heads also where all queries share one; its later decoder means what it counts
        if config.get("multi_query") and not config.get("new_decoder_architecture"):
            sizes["kv_heads"] = 1
        sizes["kv_heads"] = sizes["kv_heads"] or sizes["heads"]
        sizes["head_dim"] = sizes["head_dim"] or sizes["width"] // sizes["heads"]
    if "n_embd" in config or "expansion_ratio" in config:  # GPT-2 and MPT, whose FFN is a multiple of the width
        sizes["ffn"] = sizes["ffn"] or (_count(config, "expansion_ratio") or 4) * sizes["width"]
    if not sizes["experts"]:
        sizes["active_experts"] = 0
    return {name: size for name, size in sizes.items() if size}


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
        entries = entries_of(shape)
    each = entries * BYTES_OF.get(dtype, 2)
    reads = bool(shape.get("decoder_layers"))
    return Cache(layers * each, windowed * each, window if windowed else 0, layers * each if reads else 0)


def _first(config: Mapping[str, Any], called: Sequence[str]) -> int:
    """The first size of these names that a config has, or 0."""
    return next((size for name in called if (size := _count(config, name))), 0)


def _count(config: Mapping[str, Any], key: str) -> int:
    """A size in a config, 0 where it says none that a model can have."""
    value = config.get(key)
    return value if type(value) is int and 0 < value < 10**9 else 0


def entries_of(shape: Mapping[str, int]) -> int:
    """What one token leaves in the cache of one layer: a key and a value of every kv head."""
    return 2 * shape.get("kv_heads", 0) * shape.get("head_dim", 0)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own config, where a config holds several."""
    inner = config.get("text_config") or config.get("llm_config")
    return inner if isinstance(inner, Mapping) else config
