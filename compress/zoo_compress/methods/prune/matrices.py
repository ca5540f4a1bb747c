"""The matrices whose weights are pruned one by one, and reading and writing each as (out, in).

A matrix is a logical one: the q, k, v of a fused projection and each expert of a stack count as one each, so a fused
model loses the same weights as its unfused twin. Experts in one tensor are looked at as a list of layers (`listed` of
experts.py), whose weights are parts of that tensor, so that their inputs are known; such as cannot be a list go by size alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zoo.anatomy.coverage import left_out, tables_of
from zoo.anatomy.modules import features, output_axis, resolve
from zoo.anatomy.parts import Block, Part
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo_compress.experts import kept_tables, listable, table_shape
from zoo_compress.methods.prune.patterns import PatternOptions


@dataclass(frozen=True)
class Matrix:
    """One projection of the target, or as many as there are experts in its tensor."""

    part: Part
    is_input: bool  # whether the part's units lie along the inputs

    @property
    def path(self) -> str:
        return self.part.path

    def weight(self, module: nn.Module) -> torch.Tensor:
        """The parameter that holds it."""
        projection: Any = resolve(module, self.path)
        weight: torch.Tensor = projection if isinstance(projection, torch.Tensor) else projection.weight
        return weight

    def inputs(self, module: nn.Module) -> int:
        """How many inputs each of its outputs has."""
        weight = self.weight(module)
        return weight.shape[self._input_axis(weight)]

    def key(self, module: nn.Module) -> tuple[int, int, int]:
        """The same for the same entries of one parameter, at however many places it sits."""
        return id(self.weight(module)), self.part.offset, self.part.stride

    def entries(self) -> torch.Tensor:
        """Which entries of its axis are its own."""
        return self.part.indices(torch.arange(self.part.units))

    def read(self, module: nn.Module) -> torch.Tensor:
        """Return its entries (experts, out, in), one expert where there are none; what is returned is not to be written to."""
        weight = self.weight(module).detach()
        entries = self.entries().to(weight.device)
        whole = len(entries) == weight.shape[self.part.axis]
        picked = weight if whole else weight.index_select(self.part.axis, entries)
        moved = picked.movedim(self._input_axis(weight), -1)
        return moved.reshape(-1, *moved.shape[-2:])

    @torch.no_grad()
    def write(self, module: nn.Module, matrices_EOI: torch.Tensor) -> None:
        """Set its entries, in place."""
        weight = self.weight(module)
        entries = self.entries().to(weight.device)
        shape = list(weight.shape)
        shape[self.part.axis] = len(entries)
        input_axis = self._input_axis(weight)
        moved_shape = [size for axis, size in enumerate(shape) if axis != input_axis] + [shape[input_axis]]
        values = matrices_EOI.to(weight.dtype).reshape(moved_shape).movedim(-1, input_axis)
        if len(entries) == weight.shape[self.part.axis]:
            weight.copy_(values)
        else:
            weight.index_copy_(self.part.axis, entries, values)

    def _input_axis(self, weight: torch.Tensor) -> int:
        """The axis of the inputs; a leading axis of experts is not counted among the two that are left."""
        return self.part.axis if self.is_input else 2 * weight.dim() - 3 - self.part.axis


def matrices_of(model: Model, options: PatternOptions) -> list[Matrix]:
    """List every matrix of the target, those of experts in one tensor where they are in the model with lists in their place."""
    lists = listable(model.module)
    return [single for matrix in _matrices(model, options, lists) for single in _singles(matrix, model.module, lists)]


def left_as_they_are(model: Model, options: PatternOptions) -> Record:
    """What of the target is not pruned, for the record."""
    if options.groups is None:
        return left_out(model, options.target)
    target = model.anatomy.select(options.target)
    paths = [path for block in target.blocks for path in block.undivided(target.part)]
    return left_out(model, options.target, kept=kept_tables(model.module, paths, listable(model.module)))


def _matrices(model: Model, options: PatternOptions, lists: Collection[str]) -> Iterator[Matrix]:
    target = model.anatomy.select(options.target)
    for block in target.blocks:
        yield from _described(block, target.part)
        for path in block.undivided(target.part):
            yield from (Matrix(part, False) for part in _undivided(model.module, path, options, lists))
    for path in target.layers:
        part = model.module.get_submodule(path)
        if isinstance(part, nn.Linear):
            yield Matrix(Part(path, 0, part.out_features), False)


def _described(block: Block, which: str | None) -> Iterator[Matrix]:
    ffn = block.ffn
    for attention in (block.attention, block.cross):
        if attention and which in (None, "attention"):
            yield from (Matrix(part, False) for part in (attention.q, attention.k, attention.v))
            yield Matrix(attention.o, True)
    if ffn and which in (None, "ffn"):
        yield from (Matrix(part, False) for part in (ffn.gate, ffn.up) if part is not None)
        yield Matrix(ffn.down, True)


def _singles(matrix: Matrix, module: nn.Module, lists: Collection[str]) -> Iterator[Matrix]:
    """The matrices of a table of experts, one by one, as layers of a list; any other as it is."""
    owner, _, name = matrix.path.rpartition(".")
    if owner not in lists:
        yield matrix
        return
    for number in range(len(matrix.weight(module))):
        part = replace(matrix.part, path=f"{owner}.{number}.{name}", axis=int(matrix.is_input))
        yield Matrix(part, matrix.is_input)


def _undivided(module: nn.Module, path: str, options: PatternOptions, lists: Collection[str]) -> Iterator[Part]:
    """A matrix that nothing more is known of, or one of each expert, as the units that it puts out."""
    owner, _, name = path.rpartition(".")
    if owner in lists:
        count, outputs, _ = table_shape(module.get_submodule(owner), name)
        yield from (Part(f"{owner}.{number}.{name}", 0, outputs) for number in range(count))
    # a pattern leaves experts that stay in one tensor: which of their axes is the inputs' is not known
    elif not options.groups or not tables_of(module, [path]):
        yield _rows(module, path)


def _rows(module: nn.Module, path: str) -> Part:
    holder = resolve(module, path)
    if isinstance(holder, torch.Tensor):
        return Part(path, holder.dim() - 2, holder.shape[-2])
    sizes = features(holder)
    return Part(path, output_axis(holder), sizes[1] if sizes else len(holder.weight))  # type: ignore[arg-type]
