"""Anatomy by detection, for any transformers-style module.

The longest list of same-class blocks is the "language" stack. Projections are found by name and believed only when
their shapes agree with one another; head counts follow from shapes and the head size. Whatever is not understood is
left out (None, or an empty tuple), so that a compressor refuses with a sentence instead of cutting in the wrong place.

Only shapes are read: the module may be on the meta device, and a projection may be any module with `in_features` and
`out_features` (packed, low-rank) or a GPT-2 `Conv1D`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from zoo.anatomy import FFN, Anatomy, Attention, Block, Part, Stack

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
GATED_FFN = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
FUSED_FFN = (("gate_up_proj", "down_proj"), ("Wi", "Wo"), ("net.0.proj", "net.2"))
PLAIN_FFN = (
    ("c_fc", "c_proj"),
    ("fc1", "fc2"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate.dense", "output.dense"),
    ("up_proj", "down_proj"),
    ("lin1", "lin2"),
    ("linear1", "linear2"),
    ("fc_in", "fc_out"),
    ("wi", "wo"),
    ("net.0.proj", "net.2"),
)
HEAD_SIZE = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_head", "dim_per_head")
HEAD_COUNT = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
CROSS_ATTENTION = ("cross", "encdec", "encoder_attn", "attn2")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
HEADS = ("lm_head", "embed_out", "output_projection")
PROJECTORS = ("multi_modal_projector", "mm_projector", "projector", "connector", "merger", "mlp1")
VISION, AUDIO = ("vision", "visual", "image", "vit."), ("audio", "speech")
# Fused attention whose rows are in an order no `Part` describes (four tensor-parallel shards; [q, v, k]).
UNREADABLE = ("codegen",)


def detect(module: nn.Module) -> Anatomy:
    """Find the stacks of `module`, their blocks and projections, the embedding and the head."""
    found = _stack_lists(module)
    lists = {name: path for name, (path, _) in _name_stacks(module, found).items()}
    paths = {id(part): path for path, part in module.named_modules()}
    embedding = _paths_of(module, "get_input_embeddings", EMBEDDINGS, paths)
    head = _paths_of(module, "get_output_embeddings", HEADS, paths)
    stacks = {
        name: _stack(module, name, path, [other for other in lists.values() if other != path], head)
        for name, path in lists.items()
    }
    projector = next((path for path in paths.values() if path.rpartition(".")[2] in PROJECTORS), None)
    return Anatomy(
        stacks=stacks,
        layers={"projector": plain_layers(module, projector)} if projector and len(stacks) > 1 else {},
        embedding=embedding,
        head=head,
        tied=embedding is not None and head is not None and _same_weight(module, embedding, head),
    )


def plain_layers(module: nn.Module, path: str, *, skip: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the paths of the linear layers and convolutions at and below `path`, without those below a path in `skip`."""
    skip = tuple(skip)
    return tuple(
        name
        for name, part in module.get_submodule(path).named_modules(prefix=path)
        if (features(part) or (isinstance(getattr(part, "kernel_size", None), tuple) and hasattr(part, "in_channels")))
        and not any(inside(name, outer) for outer in skip)
    )


def features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a projection, or None where `module` is not one."""
    for names in (("in_features", "out_features"), ("nx", "nf")):
        sizes = tuple(getattr(module, name, None) for name in names)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    return None


def output_axis(module: nn.Module) -> int:
    """The axis of `module.weight` along which its outputs lie: 1 for a GPT-2 `Conv1D`, otherwise 0."""
    return 1 if hasattr(module, "nf") and not hasattr(module, "out_features") else 0


# --- stacks ---------------------------------------------------------------------------------------------------------


def _stack_lists(module: nn.Module) -> list[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Every outermost list of same-class blocks that the config counts or in which something is recognised."""
    found: list[tuple[str, nn.ModuleList | nn.Sequential]] = []
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or any(inside(path, outer) for outer, _ in found):
            continue
        if len(part) == 0 or len({type(block) for block in part}) > 1:
            continue
        config = config_of(module, path)
        if isinstance(part, nn.ModuleList) and 1 < len(part) == getattr(config, "num_hidden_layers", None):
            found.append((path, part))  # the config says what it is, whatever is recognised inside
            continue
        blocks = [_block(block, "", config) for block in part]
        attends = any(block.attention for block in blocks)
        if attends or (isinstance(part, nn.ModuleList) and any(block.ffn for block in blocks)):
            found.append((path, part))
    return found


def _name_stacks(
    module: nn.Module, found: Sequence[tuple[str, nn.ModuleList | nn.Sequential]]
) -> dict[str, tuple[str, nn.ModuleList | nn.Sequential]]:
    """Name each list; "language" is the longest that is not vision or audio (of equals, the last)."""
    kinds: dict[str, str] = {}
    for path, _ in found:
        others = [other for other, _ in found if other != path]
        kinds[path] = _kind(path, module.get_submodule(container(path, others)))
    texts = [(len(part), order, path) for order, (path, part) in enumerate(found) if not kinds[path]]
    language = max(texts)[2] if texts else None
    named: dict[str, tuple[str, nn.ModuleList | nn.Sequential]] = {}
    for path, part in sorted(found, key=lambda item: item[0] != language):
        name = "language" if path == language else kinds[path] or _plain_name(path)
        number = 2
        while name in named:
            name, number = f"{name.rsplit('-', 1)[0]}-{number}", number + 1
        named[name] = (path, part)
    return named


def _kind(path: str, container: nn.Module) -> str:
    lowered = f"{path.lower()}."
    if any(word in lowered for word in VISION):
        return "vision"
    if any(word in lowered for word in AUDIO):
        return "audio"
    parts = list(container.modules())
    reads_pixels = any(isinstance(part, nn.Conv2d | nn.Conv3d) for part in parts)
    return "vision" if reads_pixels and not any(_is_embedding(part) for part in parts) else ""


def _plain_name(path: str) -> str:
    for word in ("encoder", "decoder"):
        if word in path.lower():
            return word
    return path.replace(".", "-")


def container(path: str, others: Iterable[str]) -> str:
    """Return the highest ancestor of `path` that holds none of `others`."""
    steps = path.split(".")
    others = list(others)
    for depth in range(len(steps)):
        ancestor = ".".join(steps[:depth])
        if not any(inside(other, ancestor) for other in others):
            return ancestor
    return path


def _stack(module: nn.Module, name: str, path: str, others: Sequence[str], head: str | None) -> Stack:
    listed = module.get_submodule(path)
    config = config_of(module, path)
    assert isinstance(listed, nn.ModuleList | nn.Sequential)
    blocks = tuple(_block(block, f"{path}.{index}", config) for index, block in enumerate(listed))
    width = _width(module, blocks)
    if not width:
        return Stack(name, path, blocks)
    blocks = tuple(_with_norms(module, block, width) for block in blocks)
    scope = container(path, others)
    if head and name != "language" and not inside(head, scope):
        head = None
    outside = _outside(module, scope, path, width, head)
    return Stack(name, path, blocks, width=width, **outside)


def _width(module: nn.Module, blocks: Sequence[Block]) -> int:
    """The residual width on which every recognised projection of every block agrees, or 0."""
    widths: set[int] = set()
    for block in blocks:
        if block.attention:
            widths |= {_sizes(module, block.attention.q)[0], _sizes(module, block.attention.o)[1]}
        if block.ffn:
            widths |= {_sizes(module, block.ffn.up)[0], _sizes(module, block.ffn.down)[1]}
    return widths.pop() if len(widths) == 1 else 0


def _sizes(module: nn.Module, part: Part) -> tuple[int, int]:
    """(in, out) of the projection that holds `part`."""
    found = resolve(module, part.path)
    if isinstance(found, Tensor):
        return found.shape[-1], found.shape[-2]
    return features(found) or (0, 0)


def resolve(module: nn.Module, path: str) -> nn.Module | Tensor:
    """Return the module or the parameter that `path` names."""
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    found = owner._parameters.get(name)
    return found if found is not None else module.get_submodule(path)


def _outside(module: nn.Module, scope: str, path: str, width: int, head: str | None) -> dict[str, Any]:
    """What touches the residual outside the blocks, sorted by how."""
    norms: list[str] = []
    embeddings: list[str] = []
    readers: list[str] = []
    writers: list[str] = []
    for name, part in _leaves(module, scope, path):
        if isinstance(part, Tensor):
            if part.dim() > 1 and [size == width for size in part.shape] == [False] * (part.dim() - 1) + [True]:
                embeddings.append(name)
        elif _is_embedding(part):
            if getattr(part, "embedding_dim", None) == width:
                embeddings.append(name)
        elif _is_norm(part, width):
            norms.append(name)
        elif isinstance(part, nn.Conv2d | nn.Conv3d):
            if part.out_channels == width and part.in_channels != width and part.groups == 1:
                writers.append(name)
        elif (sizes := features(part)) and name != head:
            if sizes[0] == width:
                readers.append(name)
            if sizes[1] == width:
                writers.append(name)
    sizes = features(module.get_submodule(head)) if head else None
    reads = sizes is not None and sizes[0] == width
    return {
        "norms": tuple(norms),
        "embeddings": tuple(embeddings),
        "head": head if reads else None,
        "readers": tuple(readers),
        "writers": tuple(writers),
    }


def _leaves(module: nn.Module, scope: str, skip: str) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Modules with parameters of their own below `scope` but not below `skip`; bare parameters of containers too."""
    for name, part in module.get_submodule(scope).named_modules(prefix=scope):
        if inside(name, skip):
            continue
        if features(part) or _is_embedding(part) or _looks_like_norm(part) or isinstance(part, nn.Conv2d | nn.Conv3d):
            yield name, part
            continue
        for own, parameter in part._parameters.items():
            if parameter is not None:
                yield f"{name}.{own}".lstrip("."), parameter


# --- blocks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Owner:
    """A module inside a block, and where it is."""

    path: str
    module: nn.Module

    def child(self, name: str) -> nn.Module | None:
        if name.partition(".")[0] not in self.module._modules:  # most names: an exception takes ten times as long
            return None
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            return None

    def at(self, name: str) -> str:
        return f"{self.path}.{name}".strip(".")


def _block(block: nn.Module, path: str, config: Any) -> Block:
    owners = [_Owner(f"{path}.{name}".strip("."), part) for name, part in block.named_modules()]
    attentions = [
        attention
        for owner in owners
        if not any(word in owner.path.removeprefix(path).lower() for word in CROSS_ATTENTION)
        and (attention := _attention(owner, owners, config))
    ]
    ffns = [ffn for owner in owners if (ffn := _experts(owner, owners) or _ffn(owner, block))]
    return Block(
        path=path,
        attention=attentions[0] if len(attentions) == 1 else None,
        ffn=ffns[0] if len(ffns) == 1 else None,
    )


def _with_norms(module: nn.Module, block: Block, width: int) -> Block:
    attention = block.attention.path if block.attention else None
    norms = tuple(
        name
        for name, part in module.get_submodule(block.path).named_modules(prefix=block.path)
        if _is_norm(part, width) and not (attention and inside(name, attention) and is_head_norm(name))
    )
    return Block(block.path, block.attention, block.ffn, norms)


# --- attention ------------------------------------------------------------------------------------------------------


def _attention(owner: _Owner, owners: Sequence[_Owner], config: Any) -> Attention | None:
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
    if norms is None or _has_more(
        owner, {owner.at(n) for n in _relative(owner, q, k, v)} | {o_path} | _position_tables(owner, heads, head_dim)
    ):
        return None
    o_part = Part(o_path, 1 - output_axis(o), heads, head_dim, stride=head_dim)
    path = owner.path if inside(o_path, owner.path) else owner.path.rpartition(".")[0]
    return Attention(path, q, k, v, o_part, heads, k.units, head_dim, norms)


def _find_out(owner: _Owner, owners: Sequence[_Owner]) -> tuple[str, nn.Module] | None:
    """The output projection: a child of `owner`, or (BERT) `output.dense` of the module around it."""
    if not any(owner.child(name) for name in (*FUSED_QKV, *(row[0] for row in SEPARATE_QKV))):
        return None
    for name in ATTENTION_OUT:
        found = owner.child(name)
        if found is not None and features(found):
            return owner.at(name), found
    around = next((other for other in owners if other.path == owner.path.rpartition(".")[0]), None)
    if around is not None and owner.path and around.path != owners[0].path:
        found = around.child("output.dense")
        if found is not None and features(found):
            return around.at("output.dense"), found
    return None


def _head_size(module: nn.Module, span: int, config: Any) -> int:
    """The width of one head: the module's own number, else the config's, else from a head count."""
    for source in (module, config):
        for name in HEAD_SIZE:
            if isinstance(value := getattr(source, name, None), int) and value > 0:
                return value
        for name in HEAD_COUNT:
            if isinstance(value := getattr(source, name, None), int) and value > 0 and span % value == 0:
                return span // value
    return 0


def _separate(owner: _Owner, heads: int, head_dim: int) -> tuple[Part, Part, Part] | None:
    for names in SEPARATE_QKV:
        found = [owner.child(name) for name in names]
        sizes = [features(part) for part in found if part is not None]
        if len(sizes) != 3 or any(size is None for size in sizes):
            continue
        (q_in, q_out), (k_in, k_out), (v_in, v_out) = (size for size in sizes if size)
        if q_out != heads * head_dim or k_out != v_out or k_out % head_dim or (q_in, k_in) != (k_in, v_in):
            return None
        kv_heads = k_out // head_dim
        if kv_heads == 0 or heads % kv_heads:
            return None
        axes = [output_axis(part) for part in found if part is not None]
        counts = (heads, kv_heads, kv_heads)
        q, k, v = (
            Part(owner.at(name), axis, count, head_dim, stride=head_dim)
            for name, axis, count in zip(names, axes, counts, strict=True)
        )
        return q, k, v
    return None


def _fused(owner: _Owner, heads: int, head_dim: int, config: Any) -> tuple[Part, Part, Part] | None:
    """Read one projection that holds q, k and v, where its name and shape leave a single possible order."""
    name = next((name for name in FUSED_QKV if owner.child(name) is not None), "")
    part = owner.child(name) if name else None
    sizes = features(part) if part is not None else None
    if part is None or sizes is None or getattr(config, "model_type", None) in UNREADABLE:
        return None
    units, rest = divmod(sizes[1], head_dim)
    kv_heads, odd = divmod(units - heads, 2)
    if rest or odd or kv_heads < 1 or heads % kv_heads:
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
    if getattr(config, "model_type", None) == "gpt_bigcode" and kv_heads > 1:  # without multi-query it interleaves
        return None
    k_start = heads * size
    return (
        Part(path, axis, heads, size, stride=size),
        Part(path, axis, kv_heads, size, offset=k_start, stride=size),
        Part(path, axis, kv_heads, size, offset=k_start + kv_heads * size, stride=size),
    )


def _head_norms(owner: _Owner, heads: int, kv_heads: int, head_dim: int) -> tuple[Part, ...] | None:
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


def _position_tables(owner: _Owner, heads: int, head_dim: int) -> set[str]:
    """Tables of relative positions: as wide as one head, which all heads read, or with a number for each head (T5)."""
    children = owner.module.named_children()
    return {
        owner.at(name)
        for name, part in children
        if _is_embedding(part) and getattr(part, "embedding_dim", 0) in (heads, head_dim)
    }


def is_head_norm(path: str) -> bool:
    """Whether `path` is, by its name, a norm of queries or keys."""
    return path.rpartition(".")[2] in (*QUERY_NORMS, *KEY_NORMS)


def _relative(owner: _Owner, *parts: Part) -> set[str]:
    return {part.path.removeprefix(owner.path).lstrip(".") for part in parts}


def _has_more(owner: _Owner, known: set[str]) -> bool:
    """Whether `owner` has parameters beside the `known` ones, per-head norms and scalars (sinks, gates, norms)."""
    for name, part in owner.module.named_modules():
        path = owner.at(name)
        if any(inside(path, one) for one in known) or is_head_norm(path):
            continue
        if any(parameter is not None and parameter.numel() > 1 for parameter in part._parameters.values()):
            return True
    return False


# --- feed-forward ---------------------------------------------------------------------------------------------------


def _ffn(owner: _Owner, block: nn.Module) -> FFN | None:
    """Read `owner` as a dense feed-forward layer, or return None."""
    found: FFN | None = None
    for names in (*GATED_FFN, *FUSED_FFN, *PLAIN_FFN):
        if all(owner.child(name) is not None for name in names):
            found = _read_ffn(owner, names, fused=names in FUSED_FFN or hasattr(owner.module, "interleaved"))
            if found:
                break
    if found is None:
        return None
    alone = owner.module is not block and not owner.child("intermediate.dense")
    return None if alone and _has_more(owner, set(found.projections)) else found


def _read_ffn(owner: _Owner, names: Sequence[str], *, fused: bool) -> FFN | None:
    parts = [part for name in names if (part := owner.child(name)) is not None]
    sizes = [size for part in parts if (size := features(part)) is not None]
    if len(sizes) != len(names):
        return None
    (up_in, up_out), (inner, out) = sizes[-2], sizes[-1]
    if up_in != out or up_out != inner * (2 if fused else 1) or (len(sizes) == 3 and sizes[0] != sizes[1]):
        return None
    up_axis = output_axis(parts[-2])
    down = Part(owner.at(names[-1]), 1 - output_axis(parts[-1]), inner)
    up = Part(owner.at(names[-2]), up_axis, inner)
    if fused and getattr(owner.module, "interleaved", False):  # of ours (Phi-3-small): gate and up by turns
        return FFN(owner.path, replace(up, offset=1, stride=2), down, replace(up, stride=2))
    if fused:  # first half gate, second half up
        return FFN(owner.path, Part(up.path, up_axis, inner, offset=inner), down, up)
    gate = Part(owner.at(names[0]), output_axis(parts[0]), inner) if len(names) == 3 else None
    return FFN(owner.path, up, down, gate)


def _experts(owner: _Owner, owners: Sequence[_Owner]) -> FFN | None:
    """Read the stacked experts of transformers 5: gate_up_proj (experts, 2 inner, d), down_proj (experts, d, inner)."""
    own = owner.module._parameters
    gate_up, down = own.get("gate_up_proj"), own.get("down_proj")
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return None
    if getattr(owner.module, "is_transposed", False) or not getattr(owner.module, "is_concatenated", True):
        return None
    experts, width, inner = down.shape
    if tuple(gate_up.shape) != (experts, 2 * inner, width) or _has_other_parameters(owner.module):
        return None
    path = owner.at("gate_up_proj")
    around = next((other for other in owners if other.path == owner.path.rpartition(".")[0]), None)
    return FFN(
        path=owner.path,
        up=Part(path, 1, inner, offset=inner),
        down=Part(owner.at("down_proj"), 2, inner),
        gate=Part(path, 1, inner),
        experts=experts,
        router=_router(around, experts, width) if around else None,
    )


def _has_other_parameters(module: nn.Module) -> bool:
    known = {"gate_up_proj", "down_proj"}
    return any(name not in known for name, _ in module.named_parameters())


def _router(around: _Owner, experts: int, width: int) -> str | None:
    for name, part in around.module.named_modules():
        weight = part._parameters.get("weight")
        if weight is not None and tuple(weight.shape) == (experts, width):
            return around.at(name)
    return None


# --- small questions ------------------------------------------------------------------------------------------------


def inside(path: str, outer: str) -> bool:
    """Whether `path` is `outer` or lies below it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_embeddings", None), int)


def _looks_like_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether `module` normalises vectors of `width` entries, with a gain or without."""
    if not _looks_like_norm(module):
        return False
    weight = module._parameters.get("weight")
    if weight is not None:
        return tuple(weight.shape) == (width,)
    return tuple(getattr(module, "normalized_shape", ())) == (width,)


def config_of(module: nn.Module, path: str) -> Any:
    """Return the config nearest above `path`: a tower's own, or the text part of a composite one."""
    steps = path.split(".") if path else []
    for depth in range(len(steps), -1, -1):
        config = getattr(module.get_submodule(".".join(steps[:depth])), "config", None)
        if config is not None:
            text = getattr(config, "get_text_config", None)
            return text() if callable(text) else config
    return None


def _paths_of(module: nn.Module, method: str, names: Sequence[str], paths: dict[int, str]) -> str | None:
    """The path of what `method` returns, or of the one module with a name in `names`."""
    ask = getattr(module, method, None)
    if callable(ask):
        try:
            found = ask()
        except (NotImplementedError, AttributeError):
            found = None
        if isinstance(found, nn.Module):
            return paths.get(id(found))
    named = [path for path in paths.values() if path.rpartition(".")[2] in names]
    return named[0] if len(named) == 1 else None


def _same_weight(module: nn.Module, one: str, other: str) -> bool:
    """Whether two modules hold one matrix, as a parameter or packed."""
    first, second = (
        {id(t) for t in (*part.parameters(recurse=False), *part.buffers(recurse=False)) if t.dim() == 2}
        for part in (module.get_submodule(one), module.get_submodule(other))
    )
    return bool(first & second)
