"""How many units stay: the plan of a structured pruning, made and carried out from shapes alone.

How many is the same for every layer of the target; which ones (a `Choice`) is decided elsewhere, layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.parts import FFN, Anatomy, Attention, Part, Target
from zoo.errors import Refused
from zoo.model.lineage import Record
from zoo_compress.methods.prune import recorded_sizes
from zoo_compress.methods.prune.cut import Cut, cut, other_towers, residual_parts

Heads = tuple[int, int]  # query heads, kv heads


@dataclass(frozen=True)
class Plan:
    """The sizes to keep in the target, block by block; what is None stays as it is."""

    target: Target
    ffn: tuple[int, ...] | None = None
    heads: tuple[Heads, ...] | None = None
    width: int | None = None

    def ffns(self) -> list[tuple[FFN, int]]:
        """Every FFN that is cut, and the channels it keeps."""
        return (
            list(zip((block.ffn for block in self.target.blocks if block.ffn), self.ffn, strict=True))
            if self.ffn
            else []
        )

    def attentions(self) -> list[tuple[Attention, Heads]]:
        """Every attention layer that is cut, and the heads it keeps."""
        layers = (block.attention for block in self.target.blocks if block.attention)
        return list(zip(layers, self.heads, strict=True)) if self.heads else []

    def record(self) -> Record:
        """The sizes kept, and beside them those found, as JSON."""
        new_sizes: dict[str, Any] = {}
        old_sizes: dict[str, Any] = {}
        if self.ffn:
            new_sizes["ffn"] = list(self.ffn)
            old_sizes["ffn"] = [ffn.width for ffn, _ in self.ffns()]
        if self.heads:
            new_sizes |= {"heads": [heads for heads, _ in self.heads], "kv_heads": [kv for _, kv in self.heads]}
            old_sizes["heads"] = [layer.heads for layer, _ in self.attentions()]
            old_sizes["kv_heads"] = [layer.kv_heads for layer, _ in self.attentions()]
        if self.width:
            new_sizes["width"], old_sizes["width"] = self.width, self.target.stack.width
        return {"target": self.target.text, "kept": new_sizes, "found": old_sizes}


def planned(anatomy: Anatomy, record: Record) -> Plan:
    """Read the plan back from a record."""
    sizes = record["kept"]
    heads = tuple(zip(sizes["heads"], sizes["kv_heads"], strict=True)) if "heads" in sizes else None
    ffn = tuple(sizes["ffn"]) if "ffn" in sizes else None
    return Plan(anatomy.select(record["target"]), ffn, heads, sizes.get("width"))


def units_to_keep(amount: float | int, units: int, *, what: str, round_to: int = 1) -> int:
    """How many of `units` stay: the number asked for, or what a share removed leaves, rounded to `round_to`.

    Raises:
        Refused: more than there is, nothing left, or nothing removed.
    """
    if isinstance(amount, int):
        if amount > units:
            raise Refused(f"{what}: asked to keep {amount}, but there are only {units}.")
        return amount
    step = round_to if units > round_to else 1
    count = min(units, int(units * (1 - amount) / step + 0.5) * step)
    if count < 1:
        raise Refused(f"{what}: removing {amount:.0%} of {units} (in steps of {step}) leaves none; ask for less.")
    if count == units:
        raise Refused(f"{what}: removing {amount:.0%} of {units} (in steps of {step}) removes none; ask for more.")
    return count


def heads_to_keep(layer: Attention, *, heads: float | int | None, kv_groups: float | int | None) -> Heads:
    """How many query and kv heads of one layer stay; every kv group keeps equally many query heads.

    Raises:
        Refused: as `units_to_keep`, or the query heads do not divide into the kv groups.
    """
    per_group, kv_heads = layer.heads // layer.kv_heads, layer.kv_heads
    if kv_groups is not None:
        kv_heads = units_to_keep(kv_groups, kv_heads, what=f"{layer.path}: kv groups")
    if heads is None:
        return kv_heads * per_group, kv_heads
    if per_group == 1 and kv_groups is None:  # every head is its own group
        count = units_to_keep(heads, layer.heads, what=f"{layer.path}: heads")
        return count, count
    if isinstance(heads, float):
        what = f"{layer.path}: query heads of each of {kv_heads} kv groups"
        return kv_heads * units_to_keep(heads, per_group, what=what), kv_heads
    each, odd = divmod(heads, kv_heads)
    if odd or not 1 <= each <= per_group:
        possible = ", ".join(str(kv_heads * n) for n in range(1, per_group + 1))
        raise Refused(
            f"{layer.path}: {heads} query heads do not fit {kv_heads} kv groups of at most {per_group} heads each; "
            f"possible: {possible}."
        )
    return heads, kv_heads


def require_parts(target: Target, part: str, *, stage: str) -> list[Any]:
    """Return the "attention" or "ffn" of every block of `target`, or refuse where one was not recognised."""
    if target.part not in (None, part):
        raise Refused(f"{stage}: target {target.text!r} leaves out every {part}; drop .{target.part} from it.")
    layers = [getattr(block, part) for block in target.blocks]
    for block, layer in zip(target.blocks, layers, strict=True):
        if layer is None:
            names = dict.fromkeys(path.rpartition(".")[2] for path in block.undivided(part))
            whole = f", whose layers ({', '.join(names)}) are known as whole matrices alone" if names else ""
            raise Refused(
                f"{stage}: no {part} that can be cut was recognised in {block.path}{whole}; choose blocks that have one, "
                "or leave this part as it is."
            )
    return layers


@dataclass(frozen=True)
class Choice:
    """The units to keep: per block of the target, and one set for the residual stream."""

    ffn: Sequence[Tensor] = ()
    heads: Sequence[tuple[Tensor, Tensor]] = ()  # query heads, kv heads
    width: Tensor | None = None


def first(plan: Plan) -> Choice:
    """Keep the first units everywhere: all that shapes need."""
    ffn = [torch.arange(n).expand(layer.experts, n) if layer.experts else torch.arange(n) for layer, n in plan.ffns()]
    heads = [best_heads(torch.ones(layer.heads), layer.kv_heads, sizes) for layer, sizes in plan.attentions()]
    return Choice(ffn, heads, torch.arange(plan.width) if plan.width else None)


def best(scores: Tensor, count: int) -> Tensor:
    """Return the `count` highest along the last axis, in ascending order of index; of equals, the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def best_heads(
    scores: Tensor, kv_heads: int, sizes: Heads, *, kv_scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Keep the best kv groups, and in each of them the best query heads; return (query heads, kv heads)."""
    groups = scores.view(kv_heads, -1)
    whole = groups.sum(1) if kv_scores is None else groups.sum(1) + kv_scores
    kv = best(whole, sizes[1])
    inside = best(groups[kv], sizes[0] // sizes[1])
    return (kv[:, None] * groups.shape[1] + inside).flatten(), kv


def channel_parts(ffn: FFN) -> list[Part]:
    """The parts whose channels go together."""
    return [part for part in (ffn.gate, ffn.up, ffn.down) if part]


def cuts(module: nn.Module, anatomy: Anatomy, plan: Plan, choice: Choice, *, stage: str) -> list[Cut]:
    """List every cut that `plan` makes, keeping the units of `choice`."""
    all_cuts: list[Cut] = []
    for (ffn, _), units in zip(plan.ffns(), choice.ffn, strict=True):
        all_cuts += [Cut(part, units) for part in channel_parts(ffn)]
    for (layer, _), (q, kv) in zip(plan.attentions(), choice.heads, strict=True):
        all_cuts += [Cut(layer.q, q), Cut(layer.o, q), Cut(layer.k, kv), Cut(layer.v, kv)]
        all_cuts += [Cut(norm, q if norm.units == layer.heads else kv) for norm in layer.norms]
    if choice.width is not None:
        parts: Iterable[Part] = residual_parts(module, anatomy, plan.target.stack, stage=stage)
        all_cuts += [Cut(part, choice.width) for part in parts]
    return all_cuts


def carry_out(module: nn.Module, anatomy: Anatomy, plan: Plan, choice: Choice, *, stage: str) -> None:
    """Cut the tensors, then bring the numbers in modules and config in line."""
    cut(module, cuts(module, anatomy, plan, choice, stage=stage))
    if plan.ffn:
        recorded_sizes.set_channels(module, plan.target, plan.ffns())
    if plan.heads:
        recorded_sizes.set_heads(module, plan.target, plan.attentions())
    if plan.width:
        recorded_sizes.set_width(module, plan.target, other_towers(anatomy, plan.target.stack), plan.width)
