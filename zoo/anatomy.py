"""Anatomy: where the repeated blocks, projections, norms, embeddings and head are inside a module.

A compressor never looks for a layer by name: it asks the anatomy, so one compressor works on every family. Every
projection is described as a `Part`: units (heads or channels) laid out along one axis of one parameter. That covers
separate Linears, fused ones (Phi-3 `qkv_proj`, `gate_up_proj`), interleaved ones (GPT-NeoX), transposed ones (GPT-2
`Conv1D`, weight (in, out)) and stacked experts (Mixtral, weight (experts, out, in)) with one set of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zoo.errors import UnknownName, nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Part:
    """The units of one projection along one axis of one parameter.

    Unit i owns the entries [offset + i * stride, offset + i * stride + width) of `axis`.
    `path` names a module with a `weight`, or a parameter itself (stacked experts).
    """

    path: str
    axis: int
    units: int
    width: int = 1
    offset: int = 0
    stride: int = 1

    def indices(self, units: torch.Tensor) -> torch.Tensor:
        """Return the entries along `axis` that `units` (n,) own: (n * width,), int64."""
        import torch

        starts = self.offset + units.long() * self.stride
        return (starts[:, None] + torch.arange(self.width)).flatten()


@dataclass(frozen=True)
class Attention:
    """One attention layer; q, k, v are read on their output side, o on its input side, all in units of heads."""

    path: str
    q: Part
    k: Part
    v: Part
    o: Part
    heads: int
    kv_heads: int
    head_dim: int
    norms: tuple[Part, ...] = ()  # norms whose gain spans all heads (OLMo 2); per-head-size gains are not listed

    @property
    def projections(self) -> tuple[str, ...]:
        """The distinct modules or parameters that hold q, k, v and o."""
        return _distinct(self.q, self.k, self.v, self.o)


@dataclass(frozen=True)
class FFN:
    """One feed-forward layer; gate and up are read on their output side, down on its input side, in channels."""

    path: str
    up: Part
    down: Part
    gate: Part | None = None
    experts: int = 0  # 0: dense; otherwise the parts' parameters have a leading axis of this many experts
    router: str | None = None  # the module whose weight (experts, width) reads the residual and picks experts

    @property
    def width(self) -> int:
        return self.down.units

    @property
    def projections(self) -> tuple[str, ...]:
        """The distinct modules or parameters that hold gate, up and down."""
        return _distinct(*([self.gate] if self.gate else []), self.up, self.down)


@dataclass(frozen=True)
class Block:
    """One repeated block."""

    path: str
    attention: Attention | None = None
    ffn: FFN | None = None
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A list of blocks; `path` names the `ModuleList`."""

    name: str
    path: str
    blocks: tuple[Block, ...]
    width: int = 0  # residual width d; 0 where the stack has no single one
    norms: tuple[str, ...] = ()  # norms on the residual outside the blocks (final norm, embedding norm)
    embeddings: tuple[str, ...] = ()  # tables that write the residual (tokens, positions, token types)
    head: str | None = None  # the module that reads the residual into logits
    readers: tuple[str, ...] = ()  # other Linears that read the residual outside the blocks (BERT's head transform)
    writers: tuple[str, ...] = ()  # other Linears that write the residual outside the blocks


@dataclass(frozen=True)
class Anatomy:
    """The stacks of a module, by name ("language", "vision", "down", ...), and what joins them."""

    stacks: dict[str, Stack] = field(default_factory=dict)
    projector: str | None = None
    embedding: str | None = None
    head: str | None = None
    tied: bool = False  # head and embedding share one weight

    def select(self, target: str) -> Target:
        """Resolve a target such as "language", "language.blocks[4:]" or "language.ffn".

        Raises:
            UnknownName: no such stack or part; the message lists what there is.
        """
        found = re.fullmatch(r"([\w-]+)(?:\.blocks\[(-?\d*)(?:(:)(-?\d*))?\])?(?:\.(attention|ffn))?", target)
        stack = self.stacks.get(found[1]) if found else None
        if found is None or stack is None:
            raise UnknownName(
                f"No part of the model is called {target!r}.{nearest(target, self.stacks)} Parts: "
                f"{', '.join(self.stacks) or 'none found'}, each also with .blocks[start:stop], .attention or .ffn."
            )
        indices = list(range(len(stack.blocks)))
        if found[2] or found[3]:
            start = int(found[2]) if found[2] else None
            if found[3]:
                indices = indices[start : int(found[4]) if found[4] else None]
            else:
                indices = [i for i in indices if start is not None and i == start % len(indices)]
        if not indices:
            raise UnknownName(f"{target!r} selects no block: {found[1]} has {len(stack.blocks)} blocks.")
        return Target(target, stack, tuple(indices), found[5])


@dataclass(frozen=True)
class Target:
    """What a stage aims at: some blocks of one stack, and which part of them."""

    text: str
    stack: Stack
    indices: tuple[int, ...]
    part: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every block of the stack is selected."""
        return len(self.indices) == len(self.stack.blocks)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(self.stack.blocks[i] for i in self.indices)

    def projections(self) -> Iterator[str]:
        """Yield the path of every projection in the selected blocks, each once."""
        seen: set[str] = set()
        for block in self.blocks:
            parts: list[Attention | FFN] = []
            if block.attention and self.part != "ffn":
                parts.append(block.attention)
            if block.ffn and self.part != "attention":
                parts.append(block.ffn)
            for path in (path for part in parts for path in part.projections):
                if path not in seen:
                    seen.add(path)
                    yield path


def _distinct(*parts: Part) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.path for part in parts))
