"""The layers of a block that attention and feed-forward parts do not describe: named matrix by matrix, sorted by their names.

Recurrent and linear-attention mixers, latent and gated attention, shared experts, experts in a list, adapters, routers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from torch import Tensor, nn

from zoo.anatomy.modules import computes_as_named, features, has
from zoo.anatomy.names import EXPERTS
from zoo.anatomy.parts import Linears

# What a step of a path says of the layers below it; the first row that fits. "mixer" alone says it only where no other step does:
# Nemotron-H calls every layer so.
WORDS = (
    ("mixer", re.compile(r"linear_attn|mamba|ssm|^conv$|lstm|recurrent|^rec$")),
    ("attention", re.compile(r"attn|attention|self_att")),
    ("ffn", re.compile(r"mlp|ffn|feed_?forward|expert|moe|intermediate|^ff$")),
)
VAGUE = re.compile(r"mixer|temporal_block")


def read_linears(block: nn.Module, path: str, known: Collection[str]) -> tuple[Linears, ...]:
    """Group every matrix of a block that is not `known` by the part of the block it is in."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in (*_layers(block, path, known), *expert_tables(block, path, known)):
        groups.setdefault(_part(name, path), []).append(name)
    return tuple(Linears(kind, owner, tuple(paths)) for (kind, owner), paths in groups.items())


def read_routers(block: nn.Module, path: str) -> tuple[str, ...]:
    """What chooses between experts, or says how much of them counts: a module with a matrix, called so."""
    return tuple(
        name
        for name, part in block.named_modules(prefix=path)
        if (weight := part._parameters.get("weight")) is not None
        and weight.dim() == 2
        and _called_router(block, name.removeprefix(path).lstrip("."))
    )


def expert_tables(module: nn.Module, path: str, known: Collection[str] = ()) -> Iterator[str]:
    """Parameters that hold the matrices of all experts, stacked (experts, ...) or one below the other (DBRX)."""
    for name, part in module.named_modules(prefix=path):
        if features(part) or has(part, "kernel_size"):
            continue
        called = "expert" in name.removeprefix(path)
        for own, parameter in part._parameters.items():
            if parameter is not None and (
                _is_table(own, parameter.dim()) if called else _counts_experts(part, parameter)
            ):
                table = f"{name}.{own}".lstrip(".")
                if table not in known:
                    yield table


def _counts_experts(part: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter has a matrix for each of the experts that its module says it has (JetMoE's ParallelExperts)."""
    return parameter.dim() == 3 and any(getattr(part, name, None) == len(parameter) for name in EXPERTS.modules)


def _is_table(name: str, axes: int) -> bool:
    return "bias" not in name and (axes == 3 or (axes == 2 and name != "weight"))


def _layers(block: nn.Module, path: str, known: Collection[str]) -> Iterator[str]:
    """The outermost linear layers whose forward pass is that of a linear layer."""
    whole: list[str] = []
    for name, part in block.named_modules(prefix=path):
        if features(part) and not any(name.startswith(f"{outer}.") for outer in whole):
            whole.append(name)
            if name not in known and computes_as_named(part):
                yield name


def _part(name: str, path: str) -> tuple[str, str]:
    """Which part of its block a layer is in, as a target calls it, and where that begins."""
    steps = name.removeprefix(path).lstrip(".").split(".")
    vague = ("", path)
    for depth, step in enumerate(steps[:-1] or steps, 1):
        if "norm" in step:  # AXK2's hold layers of their own
            continue
        begins = ".".join(filter(None, (path, *steps[:depth])))
        for kind, words in WORDS:
            if words.search(step):
                return kind, begins
        if VAGUE.search(step) and not vague[0]:
            vague = "mixer", begins
    return vague


def _called_router(block: nn.Module, relative: str) -> bool:
    steps = relative.split(".")
    if steps[-1] == "shared_expert_gate" or any("router" in step for step in steps):
        return True
    if "gate" not in steps:
        return False
    beside = block.get_submodule(".".join(steps[: steps.index("gate")]))
    return any("expert" in name for name, _ in beside.named_children())
