"""Magnitude pruning: set the smallest weights of every targeted matrix to zero.

- "unstructured": one threshold a matrix, the count of zeros exact (Han et al. 2015, arXiv:1506.02626, section 3).
- "N:M": in every group of M neighbouring inputs of a row, the N largest stay (Zhou et al. 2021, arXiv:2102.04010).

A matrix is a logical one: the q, k, v of a fused projection and each expert of a stack have a threshold of their own,
so a fused model loses the same weights as its unfused twin. Zeros that were there count towards the sparsity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from zoo.anatomy.coverage import TABLES, left_out, said, tables_of
from zoo.anatomy.modules import features, output_axis, resolve
from zoo.anatomy.parts import Block, Part
from zoo.compressor import Compressor, require_dense
from zoo.errors import Refused
from zoo.model.context import Context
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo.options import CompressorOptions


class PruneMagnitude(Compressor):
    """Zero the smallest weights of every targeted projection (Han et al. 2015, section 3)."""

    name = "prune.magnitude"
    version = (
        3  # 1 left cross-attention as it was, 2 mixers, latent attention, shared experts and what else no one described
    )
    accepts = ("sparse", "shared")
    leaves = "sparse"
    structural = False

    class Options(CompressorOptions):
        sparsity: float | None = Field(
            None, gt=0, lt=1, examples=[0.5], description="share of each matrix set to zero (unstructured)"
        )
        pattern: str = Field("unstructured", description='"unstructured", or "N:M": N of every M inputs of a row stay')
        target: str = Field("language", description="which projections are pruned")

        @field_validator("pattern")
        @classmethod
        def _readable(cls, value: str) -> str:
            count, size = _groups(value) or (1, 2)
            if not 0 < count < size:
                raise ValueError(f"{value!r} keeps {count} of every {size}; write N:M with 0 < N < M, such as 2:4")
            return value

        @model_validator(mode="after")
        def _agree(self) -> Self:
            groups = _groups(self.pattern)
            if groups is None and self.sparsity is None:
                raise ValueError("sparsity is missing; write for example sparsity = 0.5, or a pattern such as '2:4'")
            if groups and self.sparsity is not None and abs(self.sparsity - (1 - groups[0] / groups[1])) > 1e-9:
                share = f"{1 - groups[0] / groups[1]:.0%}"
                raise ValueError(f"pattern {self.pattern} makes {share} of the weights zero; leave sparsity out")
            return self

    def check(self, model: Model, state: State, options: Options) -> None:
        parts = list(_parts(model, options))
        paths = dict.fromkeys(part.path for part, _ in parts)
        require_dense(state, paths, stage=self.name, does="prunes", allow=self.accepts, leaves=self.leaves)
        groups = _groups(options.pattern)
        for part, is_input in parts:
            weight = _weight(model.module, part.path)
            inputs = weight.shape[_input_axis(part, is_input, weight)]
            if groups and inputs % groups[1]:
                raise Refused(
                    f"{self.name}: {part.path} has {inputs} inputs, which {groups[1]} does not divide; "
                    f"pattern {options.pattern} needs whole groups. Use sparsity instead, or another pattern."
                )
        if not parts:
            raise Refused(
                f"{self.name}: no projection or linear layer is recognised in {options.target!r}, so nothing can be pruned. "
                f"{said(_left_out(model, options))}".strip()
            )

    def outline(self, model: Model, options: Options) -> Record:
        paths = dict.fromkeys(part.path for part, _ in _parts(model, options))
        done = {"pattern": options.pattern, "sparsity": _sparsity(options), "paths": list(paths)}
        return {**done, **_left_out(model, options)}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record = self.outline(model, options)
        parts = list(_parts(model, options))
        done: set[tuple[int, int, int]] = set()  # shared matrices once
        for part, is_input in context.progress.track(parts, total=len(parts), label=self.name):
            weight = _weight(model.module, part.path)
            key = (id(weight), part.offset, part.stride)
            if key not in done:
                done.add(key)
                _prune(weight, part, _input_axis(part, is_input, weight), options)
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        """Zeros change no structure."""

    def traits(self, record: Record) -> dict[str, Trait]:
        groups = record["pattern"] if _groups(record["pattern"]) else f"{record['sparsity']:.0%}"
        return {path: Trait("sparse", groups) for path in record["paths"]}

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        sizes = [_weight(model.module, part.path).numel() for part, _ in _parts(model, options)]
        return 16 * max(sizes, default=0)  # a copy, its magnitudes and their order

    def note(self, model: Model, options: Options) -> str:
        return "Zeros are stored like any other weight: the file does not shrink and nothing runs faster on CPU."


def _prune(weight: torch.Tensor, part: Part, input_axis: int, options: PruneMagnitude.Options) -> None:
    """Zero the smallest entries of one logical matrix, in place."""
    rows = part.indices(torch.arange(part.units)).to(weight.device)
    whole = len(rows) == weight.shape[part.axis]
    picked = weight.detach() if whole else weight.detach().index_select(part.axis, rows)
    matrices_EOI = picked.movedim(input_axis, -1).reshape(-1, *picked.movedim(input_axis, -1).shape[-2:])
    groups = _groups(options.pattern)
    keep_EOI = torch.stack(
        [
            _keep_of_groups(matrix_OI, *groups) if groups else _keep_largest(matrix_OI, _sparsity(options))
            for matrix_OI in matrices_EOI
        ]
    )
    keep = keep_EOI.reshape(picked.movedim(input_axis, -1).shape).movedim(-1, input_axis)
    with torch.no_grad():
        pruned = torch.where(keep, picked, 0.0)
        if whole:
            weight.copy_(pruned)
        else:
            weight.index_copy_(part.axis, rows, pruned)


def _keep_largest(matrix_OI: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Mask all but the round(sparsity * size) smallest; of equal magnitudes the first go."""
    size_N = matrix_OI.abs().float().flatten()
    count = round(sparsity * size_N.numel())
    if count == 0:
        return torch.ones_like(matrix_OI, dtype=torch.bool)
    threshold = size_N.kthvalue(count).values
    drop_N = size_N < threshold
    ties_N = (size_N == threshold).nonzero().flatten()
    drop_N[ties_N[: count - int(drop_N.sum())]] = True
    return ~drop_N.reshape(matrix_OI.shape)


def _keep_of_groups(matrix_OI: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Mask the `count` largest of every `size` neighbours in a row; of equal magnitudes the first stay."""
    groups_OGM = matrix_OI.abs().float().reshape(len(matrix_OI), -1, size)
    order_OGM = groups_OGM.sort(dim=-1, descending=True, stable=True).indices
    keep_OGM = torch.zeros_like(groups_OGM, dtype=torch.bool)
    return keep_OGM.scatter_(-1, order_OGM[..., :count], True).flatten(-2)


def _groups(pattern: str) -> tuple[int, int] | None:
    """Read "N:M" as (N, M); None for "unstructured"."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if match is None:
        raise ValueError(f"{pattern!r} is not a pattern; write 'unstructured' or N:M, such as '2:4'")
    return int(match[1]), int(match[2])


def _sparsity(options: PruneMagnitude.Options) -> float:
    groups = _groups(options.pattern)
    if groups:
        return 1 - groups[0] / groups[1]
    assert options.sparsity is not None
    return options.sparsity


def _parts(model: Model, options: PruneMagnitude.Options) -> Iterator[tuple[Part, bool]]:
    """Yield every projection of the target, and whether its units lie along its input."""
    target, unread = model.anatomy.select(options.target), set(_unread(model, options))
    for block in target.blocks:
        yield from _described(block, target.part)
        undivided = (path for path in block.undivided(target.part) if path not in unread)
        yield from ((_rows(model.module, path), False) for path in undivided)
    for path in target.layers:
        part = model.module.get_submodule(path)
        if isinstance(part, nn.Linear):
            yield Part(path, 0, part.out_features), False


def _described(block: Block, which: str | None) -> Iterator[tuple[Part, bool]]:
    ffn = block.ffn
    for attention in (block.attention, block.cross):
        if attention and which in (None, "attention"):
            yield from ((part, False) for part in (attention.q, attention.k, attention.v))
            yield attention.o, True
    if ffn and which in (None, "ffn"):
        yield from ((part, False) for part in (ffn.gate, ffn.up) if part is not None)
        yield ffn.down, True


def _rows(module: nn.Module, path: str) -> Part:
    """A matrix that nothing more is known of, or one of each expert, as the units that it puts out."""
    holder = resolve(module, path)
    if isinstance(holder, torch.Tensor):
        return Part(path, holder.dim() - 2, holder.shape[-2])
    sizes = features(holder)
    return Part(path, output_axis(holder), sizes[1] if sizes else len(holder.weight))  # type: ignore[arg-type]


def _unread(model: Model, options: PruneMagnitude.Options) -> list[str]:
    """Experts in one tensor that a pattern leaves: which of their axes is the inputs' is not known."""
    target = model.anatomy.select(options.target)
    if _groups(options.pattern) is None:
        return []
    return tables_of(model.module, (path for block in target.blocks for path in block.undivided(target.part)))


def _left_out(model: Model, options: PruneMagnitude.Options) -> Record:
    return left_out(model, options.target, kept={TABLES: _unread(model, options)})


def _input_axis(part: Part, is_input: bool, weight: torch.Tensor) -> int:
    """The axis of the inputs; a leading axis of experts is not counted among the two that are left."""
    return part.axis if is_input else 2 * weight.dim() - 3 - part.axis


def _weight(module: nn.Module, path: str) -> torch.Tensor:
    projection: Any = resolve(module, path)
    weight: torch.Tensor = projection if isinstance(projection, torch.Tensor) else projection.weight
    return weight
