"""Anatomy by detection, for any transformers-style module.

The decoder's list of blocks, else the longest, is the "language" stack. Projections are found by name and believed only when
their shapes agree with one another; head counts follow from shapes and the head size. Whatever is not understood so is
named matrix by matrix (`Block.linears`, the region "other"), so that a stage that cuts refuses with a sentence instead of
cutting in the wrong place, and one that treats matrices reaches it.

Only shapes are read: the module may be on the meta device, and a projection may be any module with `in_features` and
`out_features` (packed, low-rank) or a GPT-2 `Conv1D`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from zoo.anatomy.attention import is_head_norm, read_attention
from zoo.anatomy.feedforward import read_experts, read_ffn
from zoo.anatomy.linears import read_linears, read_routers
from zoo.anatomy.modules import (
    Owner,
    computes_as_named,
    config_of,
    container,
    depths_of,
    features,
    has,
    inside,
    is_embedding,
    is_norm,
    looks_like_norm,
    resolve,
    sides,
    sizes_of,
)
from zoo.anatomy.names import LAYERS
from zoo.anatomy.parts import Anatomy, Attention, Block, Stack

CROSS_ATTENTION = ("cross", "encdec", "encoder_attn", "attn2")
LISTS = ("layers", "layer", "blocks", "block", "h")  # what lists of blocks are called
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
HEADS = ("lm_head", "embed_out", "output_projection")
PROJECTORS = ("multi_modal_projector", "mm_projector", "projector", "connector", "merger", "mlp1")
VISION, AUDIO = ("vision", "visual", "image", "vit."), ("audio", "speech")


def detect(module: nn.Module) -> Anatomy:
    """Find the stacks of `module`, their blocks and projections, the embedding and the head."""
    lists = _stack_lists(module)
    stack_paths = {name: path for name, (path, _) in _name_stacks(module, lists).items()}
    paths = {id(part): path for path, part in module.named_modules()}
    embedding = _paths_of(module, "get_input_embeddings", EMBEDDINGS, paths)
    head = _paths_of(module, "get_output_embeddings", HEADS, paths)
    stacks = {
        name: _stack(module, name, path, [other for other in stack_paths.values() if other != path], head)
        for name, path in stack_paths.items()
    }
    projector = next((path for path in paths.values() if path.rpartition(".")[2] in PROJECTORS), None)
    layers = {"projector": plain_layers(module, projector)} if projector and len(stacks) > 1 else {}
    named = [path for stack in stacks.values() for path in (stack.path, *stack.readers, *stack.writers)]
    named += [*filter(None, (embedding, head)), *(path for paths in layers.values() for path in paths)]
    other = _linears_outside(module, named)
    return Anatomy(
        stacks=stacks,
        layers={**layers, "other": other} if other else layers,
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
        if (
            features(part)
            or (has(part, "kernel_size") and isinstance(part.kernel_size, tuple) and has(part, "in_channels"))
        )
        and not any(inside(name, outer) for outer in skip)
    )


def _linears_outside(module: nn.Module, named: Sequence[str]) -> tuple[str, ...]:
    """Linear layers that neither a stack nor a region has."""
    linears = [name for name, part in module.named_modules() if features(part) and computes_as_named(part)]
    outside = [name for name in linears if not any(inside(name, outer) for outer in named)]
    return tuple(name for name in outside if not any(name.startswith(f"{outer}.") for outer in outside))


# --- stacks ---------------------------------------------------------------------------------------------------------


def _stack_lists(module: nn.Module) -> list[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Every outermost list of blocks that the config counts, or of one class in which something is recognised."""
    lists: list[tuple[str, nn.ModuleList | nn.Sequential]] = []
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or any(inside(path, outer) for outer, _ in lists):
            continue
        if len(part) == 0:
            continue
        config = config_of(module, path)
        if isinstance(part, nn.ModuleList) and not looks_like_norm(part[0]) and _counted(path, len(part), config):
            if _alike(part) or any(features(layer) for layer in part.modules()):
                lists.append((path, part))  # the config says what it is, whatever is recognised inside
            continue
        if not _alike(part):
            continue
        blocks = [_block(block, "", config) for block in part]
        attends = any(block.attention for block in blocks)
        if attends or (isinstance(part, nn.ModuleList) and any(block.ffn for block in blocks)):
            lists.append((path, part))
    return lists


def _alike(blocks: Iterable[nn.Module]) -> bool:
    """Whether all blocks are of one class; those of Jamba and Zamba are of two."""
    return len({type(block) for block in blocks}) == 1


def _counted(path: str, length: int, config: Any) -> bool:
    """Whether a config says that a model, or this side of it, has as many blocks; one alone is to be called so too."""
    names = (*LAYERS.configs, *depths_of(sides(path)[0]))
    called = length > 1 or path.rpartition(".")[2] in LISTS
    return called and any(getattr(config, name, None) == length for name in names)


def _name_stacks(
    module: nn.Module, lists: Sequence[tuple[str, nn.ModuleList | nn.Sequential]]
) -> dict[str, tuple[str, nn.ModuleList | nn.Sequential]]:
    """Name each list; "language" is the decoder, else the longest that is not vision or audio (of equals, the last)."""
    kinds: dict[str, str] = {}
    for path, _ in lists:
        others = [other for other, _ in lists if other != path]
        kinds[path] = _kind(path, module.get_submodule(container(path, others)))
    # of an encoder and a decoder it is the one that writes, whichever is deeper
    texts = [
        (_plain_name(path) == "decoder", len(part), order, path)
        for order, (path, part) in enumerate(lists)
        if not kinds[path]
    ]
    language = max(texts)[3] if texts else None
    named: dict[str, tuple[str, nn.ModuleList | nn.Sequential]] = {}
    for path, part in sorted(lists, key=lambda item: item[0] != language):
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
    return "vision" if reads_pixels and not any(is_embedding(part) for part in parts) else ""


def _plain_name(path: str) -> str:
    for word in ("encoder", "decoder"):
        if word in path.lower():
            return word
    return path.replace(".", "-")


def _stack(module: nn.Module, name: str, path: str, others: Sequence[str], head: str | None) -> Stack:
    listed = module.get_submodule(path)
    config = config_of(module, path)
    assert isinstance(listed, nn.ModuleList | nn.Sequential)
    blocks = tuple(_block(block, f"{path}.{index}", config) for index, block in enumerate(listed))
    blocks = tuple(with_linears(module, block) for block in blocks)
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
    """The residual width on which every recognised projection of every block agrees, or 0.

    Where heads and channels are recognised in no block, it is the token table's, if each block reads and writes vectors of that width.
    """
    widths: set[int] = set()
    for block in blocks:
        if block.attention:
            widths |= {sizes_of(module, block.attention.q)[0], sizes_of(module, block.attention.o)[1]}
        if block.ffn:
            widths |= {sizes_of(module, block.ffn.up)[0], sizes_of(module, block.ffn.down)[1]}
    if widths:
        return widths.pop() if len(widths) == 1 else 0
    table = next((part for part in module.modules() if is_embedding(part)), None)
    width = getattr(table, "embedding_dim", 0)
    sizes = [[features(module.get_submodule(path)) for path in _linear_paths(module, block)] for block in blocks]
    agrees = all(all(any(size and size[end] == width for size in block) for end in (0, 1)) for block in sizes)
    return width if sizes and agrees else 0


def _linear_paths(module: nn.Module, block: Block) -> list[str]:
    return [path for path in block.projections() if isinstance(resolve(module, path), nn.Module)]


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
        elif is_embedding(part):
            if getattr(part, "embedding_dim", None) == width:
                embeddings.append(name)
        elif is_norm(part, width):
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
        if features(part) or is_embedding(part) or looks_like_norm(part) or isinstance(part, nn.Conv2d | nn.Conv3d):
            yield name, part
            continue
        for own, parameter in part._parameters.items():
            if parameter is not None:
                yield f"{name}.{own}".lstrip("."), parameter


# --- blocks ---------------------------------------------------------------------------------------------------------


def _block(block: nn.Module, path: str, config: Any) -> Block:
    owners = [Owner(f"{path}.{name}".strip("."), part) for name, part in block.named_modules()]
    attentions: list[Attention] = []
    crosses: list[Attention] = []
    for owner in owners:
        if attention := read_attention(owner, owners, config):
            crossing = any(word in owner.path.removeprefix(path).lower() for word in CROSS_ATTENTION)
            (crosses if crossing else attentions).append(attention)
    ffns = [ffn for owner in owners if (ffn := read_experts(owner, owners) or read_ffn(owner, block))]
    return Block(
        path=path,
        attention=attentions[0] if len(attentions) == 1 else None,
        ffn=ffns[0] if len(ffns) == 1 else None,
        cross=crosses[0] if len(crosses) == 1 else None,
    )


def with_linears(module: nn.Module, block: Block) -> Block:
    """The block with every layer that its parts do not describe, sorted by name."""
    within = module.get_submodule(block.path)
    routers = tuple(path for path in read_routers(within, block.path) if path not in block.all_routers)
    known = {*block.projections(), *block.all_routers, *routers}
    return replace(block, linears=read_linears(within, block.path, known), routers=routers)


def _with_norms(module: nn.Module, block: Block, width: int) -> Block:
    attention = block.attention.path if block.attention else None
    norms = tuple(
        name
        for name, part in module.get_submodule(block.path).named_modules(prefix=block.path)
        if is_norm(part, width) and not (attention and inside(name, attention) and is_head_norm(name))
    )
    return replace(block, norms=norms)


# --- small questions ------------------------------------------------------------------------------------------------


def _paths_of(module: nn.Module, method: str, names: Sequence[str], paths: dict[int, str]) -> str | None:
    """The path of what `method` returns, or of the one module with a name in `names`."""
    ask = getattr(module, method, None)
    if callable(ask):
        try:
            part = ask()
        except (NotImplementedError, AttributeError):
            part = None
        if isinstance(part, nn.Module):
            return paths.get(id(part))
    named = [path for path in paths.values() if path.rpartition(".")[2] in names]
    return named[0] if len(named) == 1 else None


def _same_weight(module: nn.Module, embedding: str, head: str) -> bool:
    """Whether two modules hold one matrix, as a parameter or packed."""
    first, second = (
        {id(t) for t in (*part.parameters(recurse=False), *part.buffers(recurse=False)) if t.dim() == 2}
        for part in (module.get_submodule(embedding), module.get_submodule(head))
    )
    return bool(first & second)
