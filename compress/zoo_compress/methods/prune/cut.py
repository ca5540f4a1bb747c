"""Cutting units out of a module: the parameters, and the sizes their modules declare.

`cut` is the one place where tensors become smaller. It works on real and meta tensors alike, so applying a stage and
rebuilding it on an empty module run the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zoo.anatomy.attention import is_head_norm
from zoo.anatomy.modules import container, inside, output_axis, resolve
from zoo.anatomy.parts import Anatomy, Part, Stack
from zoo.errors import Refused


@dataclass(frozen=True)
class Cut:
    """Keep some units of a part: `keep` is (n,), or (experts, n) where each expert keeps its own."""

    part: Part
    keep: Tensor


def cut(module: nn.Module, cuts: Iterable[Cut]) -> None:
    """Remove the units that `cuts` do not keep, everywhere the parameters are used.

    Several parts of one parameter (fused projections, tied tables, modules shared between blocks) may be named in any
    order and more than once; what no part mentions stays.
    """
    stays: dict[int, dict[int, Tensor]] = {}  # id of a parameter -> axis -> mask of the entries that stay
    for selection in cuts:
        for parameter, part in holders(module, selection.part):
            axes = stays.setdefault(id(parameter), {})
            mask = _mask(parameter.shape[part.axis], part, selection.keep)
            axes[part.axis] = axes[part.axis] & mask if part.axis in axes else mask
        _cut_gainless_norm(module, selection)
    smaller: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, original in owner._parameters.items():
            if original is None or id(original) not in stays:
                continue
            if id(original) not in smaller:
                smaller[id(original)] = _select(original, stays[id(original)])
            owner._parameters[name] = smaller[id(original)]
            _declare_sizes(owner)


def holders(module: nn.Module, part: Part) -> Iterator[tuple[Tensor, Part]]:
    """Yield the parameter that holds `part`, then the bias beside it where the units are outputs."""
    holder = resolve(module, part.path)
    if isinstance(holder, Tensor):
        yield holder, part
        return
    weight, bias = holder._parameters.get("weight"), holder._parameters.get("bias")
    if weight is None:
        return
    yield weight, part
    if bias is not None and part.axis == output_axis(holder) and bias.shape[0] == weight.shape[part.axis]:
        yield bias, replace(part, axis=0)


def _mask(size: int, part: Part, keep: Tensor) -> Tensor:
    """Which of `size` entries stay: (size,), or (experts, size)."""
    rows = keep.cpu() if keep.dim() == 2 else keep.cpu()[None]
    stays = torch.ones(rows.shape[0], size, dtype=torch.bool)
    for row, units in zip(stays, rows, strict=True):
        gone = torch.ones(part.units, dtype=torch.bool)
        gone[units] = False
        row[part.indices(gone.nonzero().flatten())] = False
    return stays if keep.dim() == 2 else stays[0]


def _select(parameter: Tensor, axes: Mapping[int, Tensor]) -> nn.Parameter:
    data = parameter.detach()
    for axis, mask in sorted(axes.items(), key=lambda item: -item[1].dim()):  # each expert's own choice first
        if mask.dim() == 1:
            data = data.index_select(axis, mask.nonzero().flatten().to(data.device))
            continue
        entries = [row.nonzero().flatten().to(data.device) for row in mask]
        data = torch.stack([expert.index_select(axis - 1, row) for expert, row in zip(data, entries, strict=True)])
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


def _cut_gainless_norm(module: nn.Module, selection: Cut) -> None:
    norm = resolve(module, selection.part.path)
    if isinstance(norm, nn.Module) and norm._parameters.get("weight") is None and hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (selection.keep.shape[-1],)  # type: ignore[assignment]


def _declare_sizes(owner: nn.Module) -> None:
    """Set the sizes a module declares to those its weight now has."""
    weight = owner._parameters.get("weight")
    if weight is None:
        return
    sizes: dict[str, int | tuple[int, ...]] = {}
    if weight.dim() == 1:
        sizes = {"normalized_shape": tuple(weight.shape), "num_features": weight.shape[0]}
    elif hasattr(owner, "num_embeddings"):
        sizes = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    else:
        out = output_axis(owner)
        for name in ("out_features", "out_channels", "nf"):
            sizes[name] = weight.shape[out]
        for name in ("in_features", "nx"):
            sizes[name] = weight.shape[1 - out]
    for name, size in sizes.items():
        if hasattr(owner, name):
            setattr(owner, name, size)


# --- the residual stream --------------------------------------------------------------------------------------------


def residual_parts(module: nn.Module, anatomy: Anatomy, stack: Stack, *, stage: str) -> list[Part]:
    """List every part that reads or writes the residual stream of `stack`, in units of its width.

    Raises:
        Refused: a parameter as wide as the residual has a role that detection does not know.
    """
    if not stack.width:
        raise Refused(f"{stage} cannot prune the width of {stack.name!r}: its blocks show no single residual width.")
    reads = [*stack.readers, *([stack.head] if stack.head else [])]
    writes = list(stack.writers)
    norms = list(stack.norms)
    for block in stack.blocks:
        norms += block.norms
        if block.attention:
            reads += [block.attention.q.path, block.attention.k.path, block.attention.v.path]
            writes.append(block.attention.o.path)
        if block.ffn:
            reads += [part.path for part in (block.ffn.gate, block.ffn.up) if part]
            reads += [block.ffn.router] if block.ffn.router else []
            writes.append(block.ffn.down.path)
        for layer in block.linears:
            reads += layer.reads
            writes += layer.writes
    parts = [Part(path, _input_axis(module, path), stack.width) for path in dict.fromkeys(reads)]
    parts += [Part(path, _output_axis(module, path), stack.width) for path in dict.fromkeys(writes)]
    parts += [Part(path, 0, stack.width) for path in dict.fromkeys(norms)]
    parts += [Part(path, _last_axis(module, path), stack.width) for path in stack.embeddings]
    _require_all_known(module, anatomy, stack, parts, stage)
    return parts


def other_towers(anatomy: Anatomy, stack: Stack) -> list[str]:
    """Name the parts of the module that belong to the other stacks, each up to where it joins the rest."""
    lists = [other.path for other in anatomy.stacks.values()]
    return [container(path, [p for p in lists if p != path]) for path in lists if path != stack.path]


def _input_axis(module: nn.Module, path: str) -> int:
    projection = resolve(module, path)
    return projection.dim() - 1 if isinstance(projection, Tensor) else 1 - output_axis(projection)


def _output_axis(module: nn.Module, path: str) -> int:
    projection = resolve(module, path)
    return projection.dim() - 2 if isinstance(projection, Tensor) else output_axis(projection)


def _last_axis(module: nn.Module, path: str) -> int:
    table = resolve(module, path)
    return table.dim() - 1 if isinstance(table, Tensor) else 1


def _require_all_known(module: nn.Module, anatomy: Anatomy, stack: Stack, parts: list[Part], stage: str) -> None:
    known = {id(tensor) for part in parts for tensor, _ in holders(module, part)}
    for part in parts:  # a reader's bias lies on its output side
        holder = resolve(module, part.path)
        known |= {id(p) for p in holder._parameters.values()} if isinstance(holder, nn.Module) else set()
    towers = other_towers(anatomy, stack)
    tensors = [*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if b.is_floating_point())]
    for name, tensor in tensors:
        if id(tensor) in known or stack.width not in tensor.shape or is_head_norm(name.rpartition(".")[0]):
            continue
        if not any(inside(name, tower) for tower in towers):
            raise Refused(
                f"{stage} cannot prune the width of {stack.name!r}: {name} {tuple(tensor.shape)} may touch the "
                f"residual stream ({stack.width} wide), but how is not known. Prune ffn, heads or kv_groups instead."
            )
