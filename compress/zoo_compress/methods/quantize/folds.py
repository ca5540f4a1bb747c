"""Where inputs of layers can be scaled for nothing: what gives them is divided, and the layers that read them are multiplied.

A norm gives the inputs of q, k and v, or of gate and up; up those of down where a gate multiplies it; v those of o where
every query head has its own value head. Whether that is all there is to a place is not guessed from names: a block is run
with powers of two folded in, which are exact, and a fold after which the model computes anything else is none. So norms that
a router or a residual reads as well, gains that are stored less one, and norms between v and o drop out.
"""

# I inputs of the readers

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.modules import inside, output_axis
from zoo.anatomy.parts import Block, Part
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import input_of

SAME = 1e-6  # of the largest output


@dataclass(frozen=True)
class Fold:
    """Layers whose inputs can be divided, since `outputs` of `source` are their `columns`, one by one."""

    source: str
    outputs: Tensor
    columns: Tensor
    readers: tuple[str, ...]

    def divide(self, module: nn.Module, scale_I: Tensor) -> Tensor:
        """Divide what the source gives; return by what it was divided in fact, as its dtype rounds a gain."""
        source: Any = module.get_submodule(self.source)
        parts = [source.weight, source.bias] if isinstance(getattr(source, "bias", None), Tensor) else [source.weight]
        exact_I = scale_I.clone()
        with torch.no_grad():
            for parameter in parts:
                rows = parameter.t() if parameter.dim() == 2 and output_axis(source) else parameter
                divisor = exact_I[self.columns].to(rows.device)
                before = rows[self.outputs].float()
                after = (before / (divisor[:, None] if rows.dim() == 2 else divisor)).to(rows.dtype)
                rows[self.outputs] = after
                if rows.dim() == 1 and parameter is source.weight:
                    rounded = torch.where(after != 0, before / after.float(), divisor)
                    exact_I[self.columns] = rounded.to(exact_I.device)
        return exact_I


def find_folds(model: Model, layers: Collection[str]) -> list[Fold]:
    """Find the folds whose readers are all among `layers`, each tried on a few made-up tokens."""
    batch = model.family.example(model, batch=1, size=8)
    blocks = [block for stack in model.anatomy.stacks.values() for block in stack.blocks]
    norms = {path for block in blocks for path in block.norms if _has_gain(model.module.get_submodule(path))}
    read = _read_of(model, batch, norms, layers)
    found: list[Fold] = []
    used: set[int] = set()  # modules that are part of a fold already, in the same role
    want = _outputs(model, batch)
    for block in blocks:
        candidates = [
            fold for fold in _candidates(model.module, block, read, layers) if _fresh(model.module, fold, used)
        ]
        if _holds(model, batch, candidates, want):
            found += candidates
        elif len(candidates) > 1:
            found += [fold for fold in candidates if _holds(model, batch, [fold], want)]
    return found


def _fresh(module: nn.Module, fold: Fold, used: set[int]) -> bool:
    """Whether no fold before has the same source or reader: a module that sits at several places is scaled once."""
    source, readers = id(module.get_submodule(fold.source)), {id(module.get_submodule(path)) for path in fold.readers}
    taken = {-source, *readers}
    if taken & used:
        return False
    used |= taken
    return True


def _candidates(module: nn.Module, block: Block, read: Mapping[str, str], layers: Collection[str]) -> Iterator[Fold]:
    for norm in block.norms:
        readers = tuple(path for path, source in read.items() if source == norm)
        if readers and all(inside(path, block.path) for path in readers):
            gain: Any = module.get_submodule(norm).weight
            entries = torch.arange(len(gain))
            yield Fold(norm, entries, entries, readers)
    ffn, attention = block.ffn, block.attention
    pairs: list[tuple[Part, Part]] = []
    if ffn and ffn.gate and not ffn.experts:
        pairs.append((ffn.up, ffn.down))
    if attention and attention.heads == attention.kv_heads:
        pairs.append((attention.v, attention.o))
    for source, reader in pairs:
        if source.path in read and reader.path in layers and source.units == reader.units:
            units = torch.arange(source.units)
            yield Fold(source.path, source.indices(units), reader.indices(units), (reader.path,))


def _read_of(model: Model, batch: Batch, norms: Collection[str], layers: Collection[str]) -> dict[str, str]:
    """The norm whose very output each layer reads; "" where it reads something else. Layers that do not run are left out."""
    given: list[tuple[Tensor, str]] = []  # kept alive, so that no other tensor takes the place of one
    read: dict[str, str] = {}

    def give(path: str, output: Any) -> None:
        given.append((output, path))

    def see(path: str, x: Tensor) -> None:
        source = next((norm for output, norm in given if output is x), "")
        read[path] = source if read.get(path, source) == source else ""

    with ExitStack() as stack:
        for path in norms:
            hook = model.module.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: give(path, out))
            stack.callback(hook.remove)
        for path in layers:
            handle = model.module.get_submodule(path).register_forward_pre_hook(
                lambda _, args, kwargs, path=path: see(path, input_of(args, kwargs)), with_kwargs=True
            )
            stack.callback(handle.remove)
        _outputs(model, batch)
    return read


def _holds(model: Model, batch: Batch, folds: Sequence[Fold], want: Tensor) -> bool:
    """Whether the model computes the same with powers of two folded in; its weights are as before afterwards."""
    module: Any = model.module
    touched = [module.get_submodule(path) for fold in folds for path in (fold.source, *fold.readers)]
    tensors = {id(tensor): tensor for part in touched for tensor in part.parameters(recurse=False)}
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    try:
        with torch.no_grad():
            for number, fold in enumerate(folds):
                scale_I = torch.ones(max(int(fold.columns.max()) + 1, 1))
                scale_I[fold.columns] = 2.0 ** ((torch.arange(len(fold.columns)) + number) % 3 - 1)
                fold.divide(module, scale_I)
                for path in fold.readers:
                    reader = module.get_submodule(path)
                    weight = reader.weight.t() if output_axis(reader) else reader.weight
                    weight[:, fold.columns] *= scale_I[fold.columns].to(weight)
        got = _outputs(model, batch)
        return bool((got - want).abs().max() <= SAME * want.abs().max())
    finally:
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(before[key])


def _outputs(model: Model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.family.forward(model, batch)


def _has_gain(norm: nn.Module) -> bool:
    weight = norm._parameters.get("weight")
    return weight is not None and weight.dim() == 1
