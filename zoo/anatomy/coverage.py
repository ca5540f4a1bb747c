"""Coverage: which layers of a module its anatomy does not name, so that no stage reaches them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo.anatomy.modules import features, inside
from zoo.anatomy.parts import Anatomy

if TYPE_CHECKING:
    from zoo.model.model import Model

SHOWN = 6  # kinds of names in a sentence
LEVELS = 3  # of a path that make a kind


def left_out(model: Model, target: str) -> dict[str, Any]:
    """Count the layers of a target that the anatomy does not name, for the record of a stage; {} where it names all.

    Args:
        target: "all" is the whole model, another its chosen blocks; of a part of blocks nothing is said.

    Returns:
        {"left_out": {"layers": how many, "of": of how many, "weights": their share of the weights, "names": their kinds}}
    """
    anatomy, convolutions = model.anatomy, model.spec.modality != "text"
    chosen = anatomy.select(target)
    if chosen.part:
        return {}
    scopes = [""] if target == "all" else [block.path for block in chosen.blocks]
    sizes = {
        path: size for path, size in _layers(model.module, convolutions) if any(inside(path, scope) for scope in scopes)
    }
    named = set(_named(anatomy))
    outside = [path for path in sizes if path not in named]
    if not outside:
        return {}
    share = sum(sizes[path] for path in outside) / max(1, sum(sizes.values()))
    return {
        "left_out": {
            "layers": len(outside),
            "of": len(sizes),
            "weights": round(share, 4),
            "names": list(dict.fromkeys(map(_kind, outside))),
            "linear": not convolutions,
        }
    }


def said(record: Mapping[str, Any]) -> str:
    """Say what the record of a stage leaves out; "" where nothing is."""
    left = record.get("left_out")
    if not left:
        return ""
    names = ", ".join(left["names"][:SHOWN]) + (" and others." if len(left["names"]) > SHOWN else ".")
    are, stay = ("is", "stays as it is") if left["layers"] == 1 else ("are", "stay as they are")
    return (
        f"{left['layers']} of {left['of']} {'linear ' if left['linear'] else ''}layers ({100 * left['weights']:.0f} % of their "
        f"weights) {are} not part of the anatomy and {stay}: {names}"
    )


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
    for name, parameter in module.named_parameters():
        if parameter.dim() == 3 and "expert" in name and not name.endswith(".weight"):
            yield name, parameter.numel()


def _above(path: str) -> Iterator[str]:
    steps = path.split(".")
    return (".".join(steps[:depth]) for depth in range(1, len(steps)))


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    yield from part.parameters(recurse=False)
    yield from part.buffers(recurse=False)


def _named(anatomy: Anatomy) -> Iterator[str]:
    """Everything that an anatomy names."""
    target = anatomy.select("all")
    yield from (*target.projections(), *target.layers)
    yield from filter(None, (anatomy.embedding, anatomy.head))
    for stack, _ in target.picks:
        yield from (*stack.readers, *stack.writers, *stack.embeddings, *filter(None, [stack.head]))
        yield from (block.ffn.router for block in stack.blocks if block.ffn and block.ffn.router)


def _kind(path: str) -> str:
    """A pattern of names alike: numbers are any, and what is far above is left out."""
    steps = ["*" if step.isdecimal() else step for step in path.split(".")]
    kept = steps[-LEVELS:]
    while kept[0] == "*" and len(kept) > 1:
        kept = kept[1:]
    return ".".join(kept) if len(kept) == len(steps) else ".".join(["*", *kept])
