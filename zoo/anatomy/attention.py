"""Attention layers, found by the names of their projections and believed where the shapes agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo.anatomy.model_types import UNREADABLE_QKV, type_of
from zoo.anatomy.modules import features, inside, is_embedding, is_norm, output_axis, value_of
from zoo.anatomy.names import HEAD_SIZE, HEADS
from zoo.anatomy.parts import Attention, Part

if TYPE_CHECKING:
    from zoo.anatomy.modules import Owner


# Names, relative to the module that owns them. Order inside a row matters, order of the rows does not.
SEPARATE_QKV = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)


FUSED_QKV = ("qkv_proj", "query_key_value", "c_attn", "qkv", "Wqkv")
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "to_out.0", "wo", "Wo", "proj", "o")
QUERY_NORMS = ("q_norm", "q_layernorm", "q_ln", "query_layernorm", "norm_q")
KEY_NORMS = ("k_norm", "k_layernorm", "k_ln", "key_layernorm", "norm_k")


def read_attention(owner: Owner, owners: Sequence[Owner], config: Any) -> Attention | None:
    """Read `owner` as an attention layer, or return None."""
    out = _find_out(owner, owners)
    if out is None:
        return None
    o_path, o = out
    o_sizes = features(o)
    head_dim = _head_size(owner.module, o_sizes[0], config) if o_sizes else 0
    if not o_sizes or not head_dim or o_sizes[0] % head_dim:
        return None
    heads = o_sizes[0] // head_dim
    parts = _separate(owner, heads, head_dim) or _fused(owner, heads, head_dim, config)
    if parts is None:
        return None
    q, k, v = parts
    norms = _head_norms(owner, heads, k.units, head_dim)
    if norms is None or has_more(
        owner,
        {owner.at(name) for name in _relative(owner, q, k, v)}
        | {o_path}
        | _position_tables(owner, heads, head_dim)
        | _norm_after(owner, o_sizes[1]),
    ):
        return None
    o_part = Part(o_path, 1 - output_axis(o), heads, head_dim, stride=head_dim)
    path = owner.path if inside(o_path, owner.path) else owner.path.rpartition(".")[0]
    return Attention(path, q, k, v, o_part, heads, k.units, head_dim, norms)


def _find_out(owner: Owner, owners: Sequence[Owner]) -> tuple[str, nn.Module] | None:
    """The output projection: a child of `owner`, or (BERT) `output.dense` of the module around it."""
    if not owner.module._modules or not any(
        owner.child(name) for name in (*FUSED_QKV, *(row[0] for row in SEPARATE_QKV))
    ):
        return None
    for name in ATTENTION_OUT:
        projection = owner.child(name)
        if projection is not None and features(projection):
            return owner.at(name), projection
    around = next((other for other in owners if other.path == owner.path.rpartition(".")[0]), None)
    if around is not None and owner.path and around.path != owners[0].path:
        projection = around.child("output.dense")
        if projection is not None and features(projection):
            return around.at("output.dense"), projection
    return None


def _head_size(module: nn.Module, span: int, config: Any) -> int:
    """The width of one head: the module's own number, else the config's, else from a head count."""
    for source, sizes, counts in (
        (module, HEAD_SIZE.modules, HEADS.modules),
        (config, HEAD_SIZE.configs, HEADS.configs),
    ):
        for name in sizes:
            if isinstance(value := value_of(source, name), int) and value > 0:
                return value
        for name in counts:
            if isinstance(value := value_of(source, name), int) and value > 0 and span % value == 0:
                return span // value
    return 0


def _separate(owner: Owner, heads: int, head_dim: int) -> tuple[Part, Part, Part] | None:
    for names in SEPARATE_QKV:
        projections = [owner.child(name) for name in names]
        sizes = [features(part) for part in projections if part is not None]
        if len(sizes) != 3 or any(size is None for size in sizes):
            continue
        (q_in, q_out), (k_in, k_out), (v_in, v_out) = (size for size in sizes if size)
        if q_out != heads * head_dim or k_out != v_out or k_out % head_dim or (q_in, k_in) != (k_in, v_in):
            return None
        kv_heads = k_out // head_dim
        if kv_heads == 0 or heads % kv_heads:
            return None
        axes = [output_axis(part) for part in projections if part is not None]
        counts = (heads, kv_heads, kv_heads)
        q, k, v = (
            Part(owner.at(name), axis, count, head_dim, stride=head_dim)
            for name, axis, count in zip(names, axes, counts, strict=True)
        )
        return q, k, v
    return None


def _fused(owner: Owner, heads: int, head_dim: int, config: Any) -> tuple[Part, Part, Part] | None:
    """Read one projection that holds q, k and v, where its name and shape leave a single possible order."""
    name = next((name for name in FUSED_QKV if owner.child(name) is not None), "")
    part = owner.child(name) if name else None
    sizes = features(part) if part is not None else None
    if part is None or sizes is None:
        return None
    units, rest = divmod(sizes[1], head_dim)
    kv_heads, odd = divmod(units - heads, 2)
    if rest or odd or kv_heads < 1 or heads % kv_heads or (kv_heads > 1 and type_of(config) in UNREADABLE_QKV):
        return None
    path, axis, size = owner.at(name), output_axis(part), head_dim
    if name == "query_key_value":
        if kv_heads == heads:  # GPT-NeoX, BLOOM, Falcon: q, k, v of head 0, then of head 1, ...
            q, k, v = (Part(path, axis, heads, size, offset=i * size, stride=3 * size) for i in range(3))
            return q, k, v
        # Falcon 40B, Phi-3-small: the queries that share a key, that key, its value, and the next group
        if kv_heads > 1:
            shared = heads // kv_heads
            leap = (shared + 2) * size
            return (
                Part(path, axis, heads, size, stride=size, group=shared, leap=leap),
                Part(path, axis, kv_heads, size, offset=shared * size, stride=leap),
                Part(path, axis, kv_heads, size, offset=(shared + 1) * size, stride=leap),
            )
    k_start = heads * size
    return (
        Part(path, axis, heads, size, stride=size),
        Part(path, axis, kv_heads, size, offset=k_start, stride=size),
        Part(path, axis, kv_heads, size, offset=k_start + kv_heads * size, stride=size),
    )


def _head_norms(owner: Owner, heads: int, kv_heads: int, head_dim: int) -> tuple[Part, ...] | None:
    """Norms over all heads of q or k as parts; None where a q or k norm has a shape that is not understood."""
    parts: list[Part] = []
    for names, units in ((QUERY_NORMS, heads), (KEY_NORMS, kv_heads)):
        for name in names:
            weight = getattr(owner.child(name), "weight", None)
            if not isinstance(weight, Tensor):
                continue
            shape = tuple(weight.shape)
            if shape == (units, head_dim):  # Cohere: one gain row per head
                parts.append(Part(owner.at(name), 0, units))
            elif shape == (units * head_dim,):
                parts.append(Part(owner.at(name), 0, units, head_dim, stride=head_dim))
            elif shape != (head_dim,):
                return None
    return tuple(parts)


def _position_tables(owner: Owner, heads: int, head_dim: int) -> set[str]:
    """Tables of relative positions: as wide as one head, which all heads read, or with a number for each head (T5)."""
    children = owner.module.named_children()
    return {
        owner.at(name)
        for name, part in children
        if is_embedding(part) and getattr(part, "embedding_dim", 0) in (heads, head_dim)
    }


def _norm_after(owner: Owner, width: int) -> set[str]:
    """The norm of the residual after it, which ALBERT keeps inside."""
    norm = owner.child("LayerNorm")
    return {owner.at("LayerNorm")} if norm is not None and is_norm(norm, width) else set()


def is_head_norm(path: str) -> bool:
    """Whether `path` is, by its name, a norm of queries or keys."""
    return path.rpartition(".")[2] in (*QUERY_NORMS, *KEY_NORMS)


def _relative(owner: Owner, *parts: Part) -> set[str]:
    return {part.path.removeprefix(owner.path).lstrip(".") for part in parts}


def has_more(owner: Owner, known: set[str]) -> bool:
    """Whether `owner` has parameters beside the `known` ones, per-head norms and scalars (sinks, gates, norms)."""
    for name, part in owner.module.named_modules():
        path = owner.at(name)
        if any(inside(path, outer) for outer in known) or is_head_norm(path):
            continue
        if any(parameter is not None and parameter.numel() > 1 for parameter in part._parameters.values()):
            return True
    return False
