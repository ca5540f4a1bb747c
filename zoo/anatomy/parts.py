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

from zoo.errors import RequestError, UnknownName, nearest

if TYPE_CHECKING:
    import torch


PARTS = ("attention", "ffn", "mixer")  # of a block, as a target calls them


@dataclass(frozen=True)
class Part:
    """The units of one projection along one axis of one parameter.

    Unit i owns the entries [start, start + width) of `axis`, where start = offset + i * stride. Where units come in groups
    with something between (queries of several groups, each before its own key and value), `group` says how many make one
    and `leap` how far the next begins: start = offset + i // group * leap + i % group * stride.
    `path` names a module with a `weight`, or a parameter itself (stacked experts).
    """

    path: str
    axis: int
    units: int
    width: int = 1
    offset: int = 0
    stride: int = 1
    group: int = 0  # 0: one stride throughout
    leap: int = 0

    def indices(self, units: torch.Tensor) -> torch.Tensor:
        """Return the entries along `axis` that `units` (n,) own: (n * width,), int64."""
        import torch

        units = units.long()
        among = units % self.group if self.group else units
        starts = self.offset + among * self.stride + (units // self.group * self.leap if self.group else 0)
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
class Linears:
    """Layers of a block that are named matrix by matrix, without heads or channels: a recurrent mixer (Mamba, RWKV, minGRU),
    latent attention (DeepSeek), shared experts, experts in a list, adapters.

    What treats matrices one by one (quantize, prune.magnitude, lowrank) reaches them; what removes heads or channels does not.
    """

    part: str  # the word of a target that takes them in: "mixer", "attention", "ffn"; "": whole blocks alone
    path: str
    projections: tuple[str, ...]  # linear layers, and parameters with a matrix for each expert
    reads: tuple[str, ...] = ()  # those that read the residual and those that write it, where that is known of all:
    writes: tuple[str, ...] = ()  # then the residual may become narrower


@dataclass(frozen=True)
class Block:
    """One repeated block."""

    path: str
    attention: Attention | None = None
    ffn: FFN | None = None
    norms: tuple[str, ...] = ()
    cross: Attention | None = None  # attention to another sequence, whose k and v read its width
    linears: tuple[Linears, ...] = ()  # every other layer of the block
    routers: tuple[str, ...] = ()  # what chooses between experts beside the FFN's own: every stage leaves it as it is

    @property
    def all_routers(self) -> tuple[str, ...]:
        """What chooses between experts, the FFN's own first."""
        own = (self.ffn.router,) if self.ffn and self.ffn.router else ()
        return tuple(dict.fromkeys((*own, *self.routers)))

    def projections(self, part: str | None = None) -> tuple[str, ...]:
        """The modules and parameters that hold its matrices, routers apart; of one part ("attention", "ffn", "mixer") or all."""
        described = {"attention": (self.attention, self.cross), "ffn": (self.ffn,)}
        chosen = described.values() if part is None else [described.get(part, ())]
        paths = [path for layers in chosen for layer in layers if layer for path in layer.projections]
        return tuple(dict.fromkeys((*paths, *self.undivided(part))))

    def undivided(self, part: str | None = None) -> tuple[str, ...]:
        """Those of its matrices, of one part or all, that are named without heads or channels."""
        return tuple(path for layer in self.linears if part in (None, layer.part) for path in layer.projections)


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
    """The stacks of a module by name ("language", "vision", "unet.down.0", ...), and what lies between them."""

    stacks: dict[str, Stack] = field(default_factory=dict)
    # Linears and convolutions outside blocks, by region
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    embedding: str | None = None
    head: str | None = None
    tied: bool = False  # head and embedding share one weight

    def stack(self, name: str = "") -> Stack:
        """Return the stack of that name; without one, the model's main stack: "language" where there is one, else the first.

        Raises:
            UnknownName: no such stack; the message lists what there is.
        """
        name = name or ("language" if "language" in self.stacks else next(iter(self.stacks), ""))
        if name not in self.stacks:
            raise UnknownName(
                f"No stack of blocks is called {name!r}.{nearest(name, self.stacks)} Stacks: {', '.join(self.stacks) or 'none found'}."
            )
        return self.stacks[name]

    def sizes(self) -> dict[str, int]:
        """Layers and width of the main stack, and heads and channels where all its blocks have the same."""
        if not self.stacks:
            return {}
        stack = self.stack()
        sizes = {"layers": len(stack.blocks), "width": stack.width}
        heads = {
            block.attention and (block.attention.heads, block.attention.kv_heads, block.attention.head_dim)
            for block in stack.blocks
        }
        if len(heads) == 1 and (same := heads.pop()):
            sizes |= zip(("heads", "kv_heads", "head_dim"), same, strict=True)
        channels = {block.ffn.width if block.ffn else 0 for block in stack.blocks}
        if len(channels) == 1:
            sizes["ffn"] = channels.pop()
        return {name: size for name, size in sizes.items() if size}

    def select(self, text: str) -> Target:
        """Resolve a target: "language", "language.blocks[4:]", "language.ffn", "language.mixer", "projector", "unet.down", or "all".

        A name also stands for everything below it: "unet" for "unet.down.0", "unet.mid", and so on.

        Raises:
            UnknownName: no such stack or region; the message lists what there is.
        """
        match = re.fullmatch(rf"([\w.-]+?)(?:\.blocks\[(-?\d*)(?:(:)(-?\d*))?\])?(?:\.({'|'.join(PARTS)}))?", text)
        name = match[1] if match else ""
        stacks = [stack for key, stack in self.stacks.items() if _below(key, name)]
        layers = [path for key, paths in self.layers.items() if _below(key, name) for path in paths]
        if match is None or not (stacks or layers):
            raise UnknownName(
                f"No part of the model is called {text!r}.{nearest(text, self._prefixes())} Parts: {self._parts()}"
            )
        whole = not (match[2] or match[3])
        picks = []
        for stack in stacks:
            indices = list(range(len(stack.blocks)))
            if not whole:
                start = int(match[2]) if match[2] else None
                if match[3]:
                    indices = indices[start : int(match[4]) if match[4] else None]
                else:
                    indices = [i for i in indices if start is not None and i == start % len(indices)]
            picks.append((stack, tuple(indices)))
        if not any(indices for _, indices in picks) and not (whole and layers):
            raise UnknownName(f"{text!r} selects no block: {name} has {len(stacks[0].blocks) if stacks else 0} blocks.")
        return Target(text, tuple(picks), match[5], tuple(layers) if whole and not match[5] else ())

    def _prefixes(self) -> dict[str, None]:
        """Everything a target may begin with."""
        names = (*self.stacks, *self.layers)
        return dict.fromkeys(".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2))

    def _parts(self) -> str:
        named = ", ".join(dict.fromkeys((*self.stacks, *self.layers))) or "none found"
        return f"{named}; stacks also with .blocks[start:stop], .attention, .ffn or .mixer."


@dataclass(frozen=True)
class Target:
    """What a stage aims at: some blocks of some stacks and which part of them, and single layers beside them."""

    text: str
    picks: tuple[tuple[Stack, tuple[int, ...]], ...]  # stacks, each with the indices of the chosen blocks
    part: str | None = None
    layers: tuple[str, ...] = ()

    @property
    def stack(self) -> Stack:
        """The one stack of the target.

        Raises:
            RequestError: the target has several, or none.
        """
        if len(self.picks) != 1:
            names = ", ".join(stack.name for stack, _ in self.picks)
            what = (
                f"takes in {len(self.picks)} stacks of blocks; name one of {names}"
                if names
                else "has no stack of blocks"
            )
            raise RequestError(f"{self.text!r} {what}.")
        return self.picks[0][0]

    @property
    def whole(self) -> bool:
        """Whether every block of every stack is selected."""
        return all(len(indices) == len(stack.blocks) for stack, indices in self.picks)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(stack.blocks[i] for stack, indices in self.picks for i in indices)

    def projections(self) -> Iterator[str]:
        """Yield the path of every projection in the selected blocks, each once."""
        yield from dict.fromkeys(path for block in self.blocks for path in block.projections(self.part))

    def routers(self) -> tuple[str, ...]:
        """What chooses between experts in the selected blocks, each once."""
        return tuple(dict.fromkeys(path for block in self.blocks for path in block.all_routers))


def _below(key: str, name: str) -> bool:
    return name == "all" or key == name or key.startswith(f"{name}.")


def _distinct(*parts: Part) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.path for part in parts))
