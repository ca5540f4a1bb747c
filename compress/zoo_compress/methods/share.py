"""Sharing: one feed-forward layer for many blocks.

MobiLlama (Thawakar et al. 2024, arXiv:2402.16840, section 3.2) gives every block its own attention and norms and all of
them one FFN. The paper trains such a model from scratch; here an existing model is converted, its one FFN starting as
the mean of all or as one of them, and needs training afterwards.

What is shared is each projection module, weight and bias together, so that it works where the FFN is not one module
(BERT's intermediate.dense and output.dense). Norms stay with their blocks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from zoo.anatomy.parts import FFN, Target
from zoo.compressor import Compressor, require_dense
from zoo.errors import Refused
from zoo.model.context import Context
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo.options import CompressorOptions


class ShareFFN(Compressor):
    """Let all selected blocks of a stack use one FFN (MobiLlama, section 3.2)."""

    name = "share.ffn"
    version = 2  # since "language" is the decoder
    accepts = ("shared",)
    leaves = "shared"

    class Options(CompressorOptions):
        start: Literal["mean", "first"] | int = Field(
            "mean",
            description='what the one FFN starts as: the "mean" of all, the "first", or a block\'s, by its index',
        )
        target: str = Field(
            "language", description="the blocks that share, at least two; of several stacks, each for itself"
        )

    def check(self, model: Model, state: State, options: Options) -> None:
        groups = self.outline(model, options)["groups"]
        paths = [path for group in groups for path in group]
        _require_private(model.module, paths)
        require_dense(state, paths, stage=self.name, does="makes one of", allow=self.accepts, leaves=self.leaves)
        _start_index(options, model.anatomy.select(options.target))
        for group in groups:
            _require_alike(model.module, group)

    def outline(self, model: Model, options: Options) -> Record:
        return {"groups": _groups(model.anatomy.select(options.target))}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record = self.outline(model, options)
        start = _start_index(options, model.anatomy.select(options.target))
        for group in context.progress.track(record["groups"], total=len(record["groups"]), label=self.name):
            modules = [model.module.get_submodule(path) for path in group]
            for name, parameter in modules[0].named_parameters(recurse=False):
                sources = [module.get_parameter(name) for module in modules]
                with torch.no_grad():
                    parameter.copy_(_mean(sources) if start is None else sources[start])
        self.rebuild(model, record)
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        for first, *others in record["groups"]:
            owner = model.module.get_submodule(first)
            for path in others:
                model.module.set_submodule(path, owner)

    def traits(self, record: Record) -> dict[str, Trait]:
        return {path: Trait("shared", f"one for {len(group)} blocks") for group in record["groups"] for path in group}

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        groups = _groups(model.anatomy.select(options.target))
        sizes = [p.numel() for group in groups for p in model.module.get_submodule(group[0]).parameters()]
        return 16 * max(sizes, default=0)  # a sum in double, and a term of it

    def note(self, model: Model, options: Options) -> str:
        return (
            "Every block still runs the shared layer, so this saves memory and bytes, not arithmetic; "
            "quality needs a training stage afterwards."
        )


def _mean(sources: list[nn.Parameter]) -> torch.Tensor:
    total = torch.zeros_like(sources[0], dtype=torch.float64)
    for source in sources:
        total += source
    return total / len(sources)


def _groups(target: Target) -> list[list[str]]:
    """The paths that become one module: for each stack of at least two blocks a list for each projection, in block order."""
    if target.part == "attention":
        name = target.text.removesuffix(".attention")
        raise Refused(f"share.ffn shares feed-forward layers, not {target.text!r}. Write {name!r}.")
    without = [block for block in target.blocks if block.ffn is None]
    if without:
        whole = " as one of plain channels" if without[0].undivided("ffn") else ""
        raise Refused(
            f"share.ffn: no feed-forward layer is recognised{whole} in {without[0].path}; choose a target without it."
        )
    several = [[stack.blocks[i].ffn for i in indices] for stack, indices in target.picks if len(indices) > 1]
    if not several:
        what = (
            f"is {len(target.blocks)} stacks of one block"
            if len(target.blocks) > 1
            else "is one block"
            if target.blocks
            else "has no block"
        )
        raise Refused(f"share.ffn: {target.text!r} {what}, and sharing takes two of one stack.")
    return [group for ffns in several for group in _stack_groups([ffn for ffn in ffns if ffn], target)]


def _stack_groups(ffns: list[FFN], target: Target) -> list[list[str]]:
    stacked = [ffn for ffn in ffns if ffn.experts]
    if stacked:
        raise Refused(
            f"share.ffn: {stacked[0].path} holds {stacked[0].experts} experts that its own block's router chooses "
            "from; experts are not shared between blocks."
        )
    counts = {len(ffn.projections) for ffn in ffns}
    if len(counts) > 1:
        raise Refused(f"share.ffn: the blocks of {target.text!r} have feed-forward layers of different kinds.")
    return [list(paths) for paths in zip(*(ffn.projections for ffn in ffns), strict=True)]


def _start_index(options: ShareFFN.Options, target: Target) -> int | None:
    """Which of the selected blocks the FFN starts as; None for the mean."""
    if isinstance(options.start, str):
        return 0 if options.start == "first" else None
    indices = target.picks[0][1] if target.stack else ()
    if options.start not in indices:
        raise Refused(
            f"share.ffn: start = {options.start} is not among the selected blocks {indices[0]} to {indices[-1]}."
        )
    return indices.index(options.start)


def _require_private(module: nn.Module, paths: list[str]) -> None:
    """Refuse a layer that already stands in two places."""
    owners: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        other = owners.setdefault(id(parameter), owner)
        if other != owner and owner in paths:
            raise Refused(f"share.ffn: {owner} already is {other}; choose blocks that do not share yet.")


def _require_alike(module: nn.Module, group: list[str]) -> None:
    modules = [module.get_submodule(path) for path in group]
    first = {name: tuple(p.shape) for name, p in modules[0].named_parameters()}
    for path, other in zip(group[1:], modules[1:], strict=True):
        shapes = {name: tuple(p.shape) for name, p in other.named_parameters()}
        if shapes != first or type(other) is not type(modules[0]):
            raise Refused(
                f"share.ffn: {path} is {_say(shapes)} but {group[0]} is {_say(first)}; one layer cannot stand for "
                "both. Give all blocks one width first, or choose a target of equal blocks."
            )


def _say(shapes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "without parameters"
