"""What an anatomy promises, checked on a module: its paths exist, its sizes agree, every list of blocks is in it, and a
unit of one projection is the unit of the others.

The last is asked of the module itself: where two heads or two channels change places everywhere, the block computes
what it computed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.tensors.batch import written
from zoo.testing.check import require
from zoo.testing.exact import name_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.anatomy.parts import FFN, Anatomy, Attention, Block, Part, Stack
    from zoo.model.model import Model

MAIN = 0.25  # a list of blocks with this share of the parameters has to be in the anatomy
CLOSE = 1e-3  # of a block's largest output: float32 sums in another order

# a part, some of its units, and those they change places with
Swap = list[tuple["Part", tuple[int, ...], tuple[int, ...]]]


def check_anatomy(model: Model) -> None:
    """Check that the anatomy describes the module: paths, sizes, lists of blocks, a skeleton's alike, and units that belong together.

    Raises:
        AssertionError: names the path and what is wrong with it.
    """
    anatomy = model.anatomy
    faults = list(_faults(model.module, anatomy))
    require(not faults, f"{name_of(model)}: the anatomy says that " + "; and that ".join(faults[:3]))
    require(anatomy == model.skeleton().anatomy, f"{name_of(model)}: a skeleton on the meta device has another anatomy")
    if model.device.type != "meta":
        _check_units(model)


def _check_units(model: Model) -> None:
    """Check in the first and last block of every stack that exchanging two units, everywhere, leaves its output as it was."""
    import torch

    changed = replace(model, module=model.copy().module)
    batch = model.family.example(model)
    blocks = [stack.blocks[i] for stack in model.anatomy.stacks.values() for i in sorted({0, len(stack.blocks) - 1})]
    with torch.no_grad():
        before = _outputs(model, batch, blocks)
        for path, swap in (pair for block in blocks for pair in _swaps(block)):
            _exchange(changed.module, swap)
            after = _outputs(changed, batch, blocks)
            _exchange(changed.module, swap)
            wrong = [block for block in after if _differs(before[block], after[block])]
            require(
                not wrong,
                f"{name_of(model)}: with two of the units of {path} exchanged in all its parts, {wrong[:1]} "
                "computes something else; the anatomy takes parts for one unit that are not",
            )


# --- paths and sizes --------------------------------------------------------------------------------------------------


def _faults(module: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    """What the anatomy says that is not so, in the words after "the anatomy says that"."""
    for stack in anatomy.stacks.values():
        yield from _stack_faults(module, stack)
    for region, paths in anatomy.layers.items():
        yield from (
            f"region {region!r} has {path}, which has no weight" for path in paths if _tensor(module, path) is None
        )
    ends = {name: getattr(anatomy, name) for name in ("embedding", "head") if getattr(anatomy, name)}
    weights = {name: _tensor(module, path) for name, path in ends.items()}
    yield from (
        f"the {name} is {ends[name]}, which has no weight" for name, weight in weights.items() if weight is None
    )
    if anatomy.tied and (len(weights) < 2 or weights["embedding"] is not weights["head"]):
        yield "embedding and head are tied, but they have a weight each"
    if not anatomy.tied and len(weights) == 2 and weights["embedding"] is weights["head"] is not None:
        yield "embedding and head are not tied, but they have one weight"
    yield from _left_out(module, anatomy)


def _stack_faults(module: nn.Module, stack: Stack) -> Iterator[str]:
    try:
        listed: Any = module.get_submodule(stack.path)
        expected = [f"{stack.path}.{name}" for name, _ in listed.named_children()]
    except AttributeError:
        yield f"stack {stack.name!r} is at {stack.path}, which is not in the module"
        return
    if [block.path for block in stack.blocks] != expected and len(stack.blocks) != len(listed):
        yield f"stack {stack.name!r} has {len(stack.blocks)} blocks, but {stack.path} has {len(expected)}"
    touching = {
        "norm": stack.norms,
        "embedding": stack.embeddings,
        "head": (stack.head,) if stack.head else (),
        "reader": stack.readers,
        "writer": stack.writers,
    }
    for kind, paths in touching.items():
        for path in paths:
            weight = _tensor(module, path)
            if weight is None:
                yield f"{path} is a {kind} of stack {stack.name!r}, but it is no module with a weight"
            elif stack.width and stack.width not in weight.shape:
                yield f"{path} is a {kind} of the residual of width {stack.width}, but its weight is {tuple(weight.shape)}"
    for block in stack.blocks:
        yield from _block_faults(module, block)
        yield from _linears_faults(module, block, stack.width)


def _block_faults(module: nn.Module, block: Block) -> Iterator[str]:
    for path in (block.path, *block.norms):
        if not _exists(module, path):
            yield f"there is a module at {path}, but there is none"
    for attention in filter(None, (block.attention, block.cross)):
        yield from _attention_faults(module, attention)
    if block.ffn:
        yield from _ffn_faults(module, block.ffn)


def _linears_faults(module: nn.Module, block: Block, width: int) -> Iterator[str]:
    """What is wrong with the layers that are named as whole matrices, and which the block has and names nowhere."""
    from zoo.anatomy.modules import computes_as_named, features, resolve
    from zoo.anatomy.parts import PARTS

    for layer in block.linears:
        if layer.part not in (*PARTS, ""):
            yield f"the layers at {layer.path} are its {layer.part!r}, which is none of {', '.join(PARTS)}"
        if not _inside(layer.path, block.path):
            yield f"{layer.path} is a part of the block at {block.path}, which it is not below"
        for end, paths in ((0, layer.reads), (1, layer.writes)):
            for path in paths:
                if path not in layer.projections:
                    yield f"{path} {('reads', 'writes')[end]} the residual, but is not among the layers at {layer.path}"
                elif (sizes := features(module.get_submodule(path))) and sizes[end] != width:
                    yield f"{path} {('reads', 'writes')[end]} the residual of width {width}, but is {sizes[0]} to {sizes[1]}"
    described = [layer for layer in (block.attention, block.cross, block.ffn) if layer]
    named = [path for layer in (*described, *block.linears) for path in layer.projections]
    named += block.all_routers
    yield from (f"there is a weight at {path}, but there is none" for path in named if _tensor(module, path) is None)
    yield from (f"{path} is two things in the block at {block.path}" for path in set(named) if named.count(path) > 1)
    known = {id(resolve(module, path)) for path in named if _exists(module, path)}
    for path, part in module.get_submodule(block.path).named_modules(prefix=block.path):
        inner = any(_inside(path, outer) for outer in named)
        if features(part) and computes_as_named(part) and not inner and id(part) not in known:
            yield f"the block at {block.path} has no linear layer {path}; name it in a part, in linears or in routers"


def _attention_faults(module: nn.Module, attention: Attention) -> Iterator[str]:
    counts = {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads, "o": attention.heads}
    for name, count in counts.items():
        part: Part = getattr(attention, name)
        if part.units != count:
            yield f"{name} of {attention.path} has {part.units} heads, but the layer has {count}"
        if name in "qk" and part.width != attention.head_dim:
            yield f"a head of {name} of {attention.path} is {part.width} wide, but head_dim is {attention.head_dim}"
        yield from _part_faults(module, part)
    if attention.o.width != attention.v.width:
        yield f"a head of {attention.path} is {attention.v.width} wide in v and {attention.o.width} in o"
    if not attention.kv_heads or attention.heads % attention.kv_heads:
        yield f"{attention.path} has {attention.heads} heads for {attention.kv_heads} of keys and values, which does not divide"
    for part in attention.norms:
        yield from _part_faults(module, part)


def _ffn_faults(module: nn.Module, ffn: FFN) -> Iterator[str]:
    parts = {"up": ffn.up, "down": ffn.down, **({"gate": ffn.gate} if ffn.gate else {})}
    if len({part.units * part.width for part in parts.values()}) > 1:
        sizes = ", ".join(f"{part.units} in {name}" for name, part in parts.items())
        yield f"{ffn.path} has {sizes} channels, which should be as many"
    for part in parts.values():
        yield from _part_faults(module, part)


def _part_faults(module: nn.Module, part: Part) -> Iterator[str]:
    import torch

    weight = _tensor(module, part.path)
    if weight is None:
        yield f"there is a weight at {part.path}, but there is none"
        return
    last = int(part.indices(torch.tensor([part.units - 1]))[-1]) + 1
    size = weight.shape[part.axis] if part.axis < weight.dim() else 0
    if last > size:
        yield f"units of {part.path} reach to {last} along axis {part.axis}, but its weight is {tuple(weight.shape)}"


def _left_out(module: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    """Lists of like blocks, with much of the parameters, that no stack and no region has."""
    from torch import nn

    whole = sum(p.numel() for p in module.parameters())
    known = [stack.path for stack in anatomy.stacks.values()]
    known += [path for paths in anatomy.layers.values() for path in paths]
    for path, part in module.named_modules():
        alike = (
            isinstance(part, nn.ModuleList | nn.Sequential)
            and len(part) > 1
            and len({type(block) for block in part}) == 1
        )
        if not alike or not all(list(block.children()) for block in part.children()):
            continue
        share = sum(p.numel() for p in part.parameters()) / max(1, whole)
        if share >= MAIN and not any(_inside(path, other) or _inside(other, path) for other in known):
            yield f"no stack is at {path}, where {len(list(part.children()))} blocks have {share:.0%} of the parameters"


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _exists(module: nn.Module, path: str) -> bool:
    from zoo.anatomy.modules import resolve

    try:
        resolve(module, path)
    except AttributeError:
        return False
    return True


def _tensor(module: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter at a path, or the weight of the module there; None where there is neither."""
    import torch

    from zoo.anatomy.modules import resolve

    if not _exists(module, path):
        return None
    holder = resolve(module, path)
    weight = holder if isinstance(holder, torch.Tensor) else getattr(holder, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


# --- units ------------------------------------------------------------------------------------------------------------


def _swaps(block: Block) -> Iterator[tuple[str, Swap]]:
    """For each layer of a block, its first and its last unit in all the parts that have it."""
    for attention in filter(None, (block.attention, block.cross)):
        if (last := attention.kv_heads - 1) > 0:
            group = attention.heads // attention.kv_heads
            first_heads, last_heads = tuple(range(group)), tuple(range(last * group, attention.heads))
            swap: Swap = [(part, first_heads, last_heads) for part in (attention.q, attention.o)]
            swap += [(part, (0,), (last,)) for part in (attention.k, attention.v)]
            swap += [
                (part, first_heads, last_heads) if part.units == attention.heads else (part, (0,), (last,))
                for part in attention.norms
            ]
            yield attention.path, swap
    if block.ffn and (last := block.ffn.down.units - 1) > 0:
        parts = (block.ffn.up, block.ffn.down, *([block.ffn.gate] if block.ffn.gate else []))
        yield block.ffn.path, [(part, (0,), (last,)) for part in parts]


def _exchange(module: nn.Module, swap: Swap) -> None:
    """Let units change places, in weights and, on the side where they are outputs, in biases."""
    import torch

    from zoo.anatomy.modules import output_axis, resolve

    for part, units, others in swap:
        holder = resolve(module, part.path)
        first, second = part.indices(torch.tensor(units)), part.indices(torch.tensor(others))
        if isinstance(holder, torch.Tensor):
            _exchange_entries(holder, part.axis, first, second)
            continue
        weight: Any = holder.weight
        _exchange_entries(weight, part.axis, first, second)
        bias = getattr(holder, "bias", None)
        if bias is not None and part.axis == (output_axis(holder) if weight.dim() > 1 else 0):
            _exchange_entries(bias, 0, first, second)


def _exchange_entries(tensor: torch.Tensor, axis: int, first: torch.Tensor, second: torch.Tensor) -> None:
    import torch

    order = torch.arange(tensor.shape[axis])
    order[first], order[second] = second, first
    tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))


def _outputs(model: Model, batch: Any, blocks: Iterable[Block]) -> dict[str, list[torch.Tensor]]:
    """What each block puts out at every call."""
    outputs: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for path in dict.fromkeys(block.path for block in blocks):

        def keep(
            _module: nn.Module,
            _read: Any,
            out: Any,
            block_outputs: list[torch.Tensor] = outputs.setdefault(path, []),  # noqa: B008
        ) -> None:
            block_outputs.append(written(out))

        hooks.append(model.module.get_submodule(path).register_forward_hook(keep))
    try:
        model.family.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [path for path, block_outputs in outputs.items() if not block_outputs]
    require(not idle, f"{name_of(model)}: the anatomy has a block {idle[:1]} that a forward pass does not run")
    return outputs


def _differs(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return any((b - a).abs().max() > CLOSE * b.abs().max() for b, a in zip(before, after, strict=True))
