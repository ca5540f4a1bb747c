"""Coverage: which layers of a module its anatomy does not name, so that no stage reaches them, and which a stage leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo.anatomy.linears import expert_tables
from zoo.anatomy.modules import features, inside, resolve
from zoo.anatomy.parts import Anatomy

if TYPE_CHECKING:
    from zoo.model.model import Model

SHOWN = 6  # kinds of names in a sentence
LEVELS = 3  # of a path that make a kind
ROUTERS, TABLES = "routers", "experts in one tensor"  # what a stage may keep


def left_out(model: Model, target: str, *, kept: Mapping[str, Iterable[str]] | None = None) -> dict[str, Any]:
    """Count the layers of a target that a stage does not reach, for its record; {} where it reaches all.

    Args:
        target: "all" is the whole model, another its chosen blocks; of a part of blocks only what is kept is said.
        kept: what the stage itself leaves as it is: kind -> paths. Routers, which every such stage leaves, are added.

    Returns:
        {"left_out": {"layers": how many, "of": of how many, "weights": their share of the weights, "names": their kinds},
        "left_as_is": [{"kind": "routers", "layers": how many, "weights": their share, "names": their kinds}, ...]}
    """
    anatomy, convolutions = model.anatomy, model.spec.modality != "text"
    chosen = anatomy.select(target)
    scopes = [""] if target == "all" else [block.path for block in chosen.blocks]
    sizes = {
        path: size for path, size in _layers(model.module, convolutions) if any(inside(path, scope) for scope in scopes)
    }
    whole = max(1, sum(sizes.values()))
    record: dict[str, Any] = {}
    outside = [] if chosen.part else unnamed(anatomy, sizes)
    if outside:
        share = sum(sizes[path] for path in outside) / whole
        about = {"layers": len(outside), "of": len(sizes), "weights": round(share, 4), "names": _kinds(outside)}
        record["left_out"] = {**about, "linear": not convolutions}
    routers = chosen.routers() if chosen.part in (None, "ffn") else ()
    counted = {ROUTERS: routers, **(kept or {})}
    for kind, paths in ((kind, list(paths)) for kind, paths in counted.items()):
        if paths:
            share = sum(sizes.get(path) or _size(model.module, path) for path in paths) / whole
            about = {"kind": kind, "layers": len(paths), "weights": round(min(1, share), 4), "names": _kinds(paths)}
            record.setdefault("left_as_is", []).append(about)
    return record


def said(record: Mapping[str, Any]) -> str:
    """Say what the record of a stage leaves out; "" where nothing is."""
    sentences = []
    if left := record.get("left_out"):
        are, stay = ("is", "stays as it is") if left["layers"] == 1 else ("are", "stay as they are")
        sentences.append(
            f"{left['layers']} of {left['of']} {'linear ' if left['linear'] else ''}layers ({100 * left['weights']:.0f} % of "
            f"their weights) {are} not part of the anatomy and {stay}: {_shown(left['names'])}."
        )
    if kept := record.get("left_as_is"):
        kinds = [
            f"{about['kind']} ({_shown(about['names'])}: {about['layers']} layer{'s' if about['layers'] > 1 else ''}, "
            f"{100 * about['weights']:.0f} % of the weights)"
            for about in kept
        ]
        sentences.append(f"It leaves as they are: {'; '.join(kinds)}.")
    return " ".join(sentences)


def unnamed(anatomy: Anatomy, layers: Iterable[str]) -> list[str]:
    """Those of `layers` that an anatomy does not name."""
    named = set(_named(anatomy))
    return [path for path in layers if path not in named]


def tables_of(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are parameters with the matrices of all experts."""
    return [path for path in paths if isinstance(resolve(module, path), Tensor)]


def _layers(module: nn.Module, convolutions: bool) -> Iterator[tuple[str, int]]:
    """Every linear layer, table of experts and, where asked, convolution, with its size; of one made of two only itself."""
    whole: set[str] = set()
    for path, part in module.named_modules():
        if any(outer in whole for outer in _above(path)):
            continue
        if sizes := features(part):
            whole.add(path)
            yield path, math.prod(sizes)
        elif convolutions and isinstance(getattr(part, "kernel_size", None), tuple) and hasattr(part, "in_channels"):
            yield path, max((tensor.numel() for tensor in _tensors(part)), default=0)
    yield from ((path, _size(module, path)) for path in expert_tables(module, ""))


def _size(module: nn.Module, path: str) -> int:
    holder = resolve(module, path)
    if isinstance(holder, Tensor):
        return holder.numel()
    return math.prod(features(holder) or (max((tensor.numel() for tensor in _tensors(holder)), default=0),))


def _above(path: str) -> Iterator[str]:
    steps = path.split(".")
    return (".".join(steps[:depth]) for depth in range(1, len(steps)))


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    yield from part.parameters(recurse=False)
    yield from part.buffers(recurse=False)


def _named(anatomy: Anatomy) -> Iterator[str]:
    """Everything that an anatomy names."""
    yield from (path for paths in anatomy.layers.values() for path in paths)
    yield from filter(None, (anatomy.embedding, anatomy.head))
    for stack in anatomy.stacks.values():
        yield from (*stack.readers, *stack.writers, *stack.embeddings, *filter(None, [stack.head]))
        yield from (path for block in stack.blocks for path in (*block.projections(), *block.all_routers))


def _kinds(paths: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_kind, paths)))


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and others" if len(names) > SHOWN else "")


def _kind(path: str) -> str:
    """A pattern of names alike: numbers are any, and what is far above is left out."""
    steps = ["*" if step.isdecimal() else step for step in path.split(".")]
    kept = steps[-LEVELS:]
    while kept[0] == "*" and len(kept) > 1:
        kept = kept[1:]
    return ".".join(kept) if len(kept) == len(steps) else ".".join(["*", *kept])
