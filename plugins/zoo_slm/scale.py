"""Twins: a model's architecture at test size, with every ratio and quirk of it.

One set of rules over the sizes in a config, whatever it calls them; there is no table of models. Kept are: query heads per
key/value head, the FFN's and the heads' share of the width, tied or not, which layers are of which kind (at least two of
each), experts per token, the share of a head that rotates, the rotary settings, windows shorter than the context, and the
constants that belong to a width. Small are: layers, heads, head width, context, vocabulary, experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.anatomy.names import (
    CONTEXT,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    EXPERT_WIDTH,
    EXPERTS,
    FFN_WIDTH,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    LAYERS,
    SHARED_EXPERT_WIDTH,
    SIDES_FFN_WIDTH,
    SIDES_HEADS,
    TABLE_WIDTH,
    WIDTH,
    WINDOW,
)
from zoo.errors import RequestError

DEPTH, MANY, FEW, HEAD, WIDEST = 4, 4, 2, 8, 8  # above WIDEST heads, a head is half as wide
WORDS, LONGEST, SHORT, POOL = 512, 64, 8, 4

# Every name of each kind of size: those of the whole first, which all others follow.
DEPTHS = (*LAYERS.configs, *ENCODER_LAYERS.configs, *DECODER_LAYERS.configs)
WIDTHS = (*WIDTH.configs, *TABLE_WIDTH.configs)
QUERIES = (*HEADS.configs, *SIDES_HEADS.configs)
INNER = (*FFN_WIDTH.configs, *SIDES_FFN_WIDTH.configs, *EXPERT_WIDTH.configs, *SHARED_EXPERT_WIDTH.configs)
# Sizes that stand for themselves: the most that a twin has of each.
MOST = {
    "vocab_size": WORDS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "blocksparse_block_size": 4,
    "blocksparse_num_local_blocks": 2,
    "blocksparse_vert_stride": 4,
    "byte_embedding_dim": 16,
    "byte_heads": 4,
    "embedder_blocks": 3,
    "decoder_blocks": 2,
}
# Sizes of architectures that these rules do not know.
STRANGE = ("kv_lora_rank", "state_size", "ssm_state_size", "linear_num_value_heads", "text_config", "vision_config")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that those of all its parts follow from; 0 where a config does not say."""

    depth: int
    width: int
    heads: int
    groups: int  # heads of keys and values
    head: int  # the width of one
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """Read them from a config."""
        width, heads, depth = _first(config, WIDTHS), _first(config, QUERIES), _first(config, DEPTHS)
        head = _first(config, HEAD_SIZE.configs) or (width // heads if heads else 0)
        return cls(
            depth, width, heads, _first(config, KV_HEADS.configs) or heads, head, _first(config, CONTEXT.configs)
        )

    def shrunk(self, config: Mapping[str, Any], *, rotating: float) -> Sizes:
        """Those of the twin of a model, of whose heads this share rotates."""
        heads, groups = _heads(self.heads, self.groups)
        head = _head(heads, rotating)
        width = _width(heads, head, self.width / (self.heads * self.head))
        return Sizes(_depth(config, self.depth), width, heads, groups, head, min(self.context, LONGEST))

    def shares(self, full: Sizes) -> tuple[float, float]:
        """What is left of the width and of the context of the full model."""
        return self.width / full.width, self.context / full.context if full.context else 1.0


def tiny(config: Mapping[str, Any], given: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Shrink a config.

    Args:
        config: all values of it, those that its class adds too.
        given: the values that were written down; what is returned has these, and those that differ from the class's.

    Raises:
        RequestError: it is none of a transformer of blocks with attention.
    """
    strange = [key for key in STRANGE if config.get(key)]
    full = Sizes.of(config)
    if strange or not (full.width and full.heads and full.depth):
        why = f"it has {strange[0]}" if strange else "its config does not say how many heads of what width it has"
        raise RequestError(
            f"{name} cannot be shrunk: {why}, and scale = 'tiny' shrinks language models of attention blocks."
        )
    rope = config.get("rope_parameters") or {}
    rotating = rope.get("partial_rotary_factor")
    small = full.shrunk(config, rotating=float(rotating or config.get("rotary_pct") or 1))
    share, shorter = small.shares(full)

    values: dict[str, Any] = _resized(config, full, small)
    # a matrix this wide gives values as large
    for key, power in {"dim_model_base": 1.0, "initializer_range": -0.5}.items():
        if isinstance(number := config.get(key), int | float):
            values[key] = number * share**power
    for key, entries in config.items():
        if isinstance(entries, list) and len(entries) == full.depth and "layer" in key:
            values[key] = entries[: small.depth]
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given.get(key), Mapping):
            values[key] = _rotary(given[key], shorter, int(small.head * float(rotating or 1)) // 2)
    values |= _ids(config)
    return {**given, **{key: value for key, value in values.items() if key in given or value != config.get(key)}}


def _resized(config: Mapping[str, Any], full: Sizes, small: Sizes) -> dict[str, int]:
    """Every size that a config has, as its twin's has it."""
    share, shorter = small.shares(full)
    return (
        _set(config, DEPTHS, lambda size: min(size, small.depth))
        | _set(config, WIDTHS, lambda size: small.width if size == full.width else _even(size * share))
        | _set(config, QUERIES, lambda _: small.heads)
        | _set(config, KV_HEADS.configs, lambda _: small.groups)
        | _set(config, HEAD_SIZE.configs, lambda _: small.head)
        | _set(config, INNER, lambda size: max(8, round(size * share / 8) * 8))
        | _set(config, CONTEXT.configs, lambda size: min(size, LONGEST))
        | _set(config, EXPERTS.configs, lambda size: min(size, POOL))
        | _set(config, MOST, None)
        | _set(config, WINDOW.configs, lambda size: SHORT if size < (full.context or size + 1) else 2 * LONGEST)
        | _set(config, ("original_max_position_embeddings",), lambda size: max(2, round(size * shorter)))
        | _set(config, ("max_window_layers",), lambda size: round(size * small.depth / full.depth))
        | _set(config, ("query_pre_attn_scalar",), lambda size: round(size * small.head / full.head))
    )


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """The first size of these names that a config has, or 0."""
    return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), 0)


def _set(config: Mapping[str, Any], names: Any, rule: Any) -> dict[str, int]:
    """What a rule makes of those of these sizes that a config has; without a rule, no more than `names` says."""
    there = {name: config[name] for name in names if type(config.get(name)) is int and config[name] > 0}
    return {name: min(found, names[name]) if rule is None else rule(found) for name, found in there.items()}


def _heads(heads: int, groups: int) -> tuple[int, int]:
    """Few heads, as many to a key/value head as before."""
    if groups == heads:
        return min(heads, MANY), min(heads, MANY)
    few = min(groups, FEW)
    return few * (heads // groups), few


def _head(heads: int, rotating: float) -> int:
    """A head so wide that the share of it that rotates is made of pairs."""
    least = HEAD if heads <= WIDEST else HEAD // 2
    fits = (width for width in range(least, 128, 2) if rotating * width % 2 < 1e-6 and rotating * width >= 2)
    return next(fits, least)


def _width(heads: int, head: int, share: float) -> int:
    """The width, which is that of all heads or, as before, is not."""
    all_heads = heads * head
    if share == 1:
        return all_heads
    steps = max(1, round(all_heads * share / heads))
    return heads * (steps if steps != head else steps + (1 if share > 1 else -1))


def _depth(config: Mapping[str, Any], depth: int) -> int:
    """The fewest layers, from the first on, with two of each kind that the model has."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) and (every := _first(config, ("dense_attention_every_n_layers",))):
        kinds = [(layer + 1) % every == 0 for layer in range(depth)]
    if not isinstance(kinds, list):
        return min(depth, DEPTH)
    enough = (n for n in range(min(DEPTH, depth), depth) if all(kinds[:n].count(kind) >= 2 for kind in kinds))
    return next(enough, depth)


def _even(size: float) -> int:
    return max(2, round(size / 2) * 2)


def _rotary(given: Mapping[str, Any], shorter: float, pairs: int) -> dict[str, Any]:
    """Rotary settings for a shorter context, and as many factors as there are pairs."""
    made = dict(given)
    for key, found in given.items():
        if key == "original_max_position_embeddings":
            made[key] = max(2, round(found * shorter))
        elif key.endswith("_factor") and isinstance(found, list):
            made[key] = [found[place * len(found) // pairs] for place in range(pairs)]
    return made


def _ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens beyond the vocabulary, the last ones of it, those that were different still so."""
    named = {key: found for key, found in config.items() if key.endswith("token_id") and found is not None}
    beyond = sorted(
        {one for found in named.values() for one in (found if isinstance(found, list) else [found]) if one >= WORDS}
    )
    number = {one: WORDS - 1 - place for place, one in enumerate(beyond)}
    return {
        key: [number.get(one, one) for one in found] if isinstance(found, list) else number.get(found, found)
        for key, found in named.items()
    }
