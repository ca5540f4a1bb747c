"""Layers whose weight the code around them reads itself, as Mamba multiplies by `self.dt_proj.weight`.

A packed or factored layer in such a place has to have a weight to read. Asked of the compiled code of the class that holds
the layer, so nothing is run; that it may be read is enough. What an initialiser or tying reads does not count.
"""

from __future__ import annotations

import dis
import inspect
import itertools
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

ELSEWHERE = ("__init__", "_init", "init_", "reset", "tie_", "get_", "set_", "load_")


def read_directly(module: nn.Module, path: str) -> bool:
    """Whether the class that holds the layer at `path` reads its weight."""
    owner, _, name = path.rpartition(".")
    return name in _read_by(type(module.get_submodule(owner)))  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _read_by(kind: type) -> frozenset[str]:
    """The attributes of a class whose `.weight` its methods read."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base.__module__ == "transformers.modeling_utils":
            continue
        for name, method in vars(base).items():
            function = method.fget if isinstance(method, property) else method
            if isinstance(function, FunctionType) and not name.startswith(ELSEWHERE):
                names |= set(_weights_in(inspect.unwrap(function).__code__))
    return frozenset(names)


def _weights_in(code: CodeType) -> Iterator[str]:
    loads = [
        step.argval if step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) else ""
        for step in dis.get_instructions(code)
    ]
    yield from (layer for layer, weight in itertools.pairwise(loads) if layer and weight == "weight")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _weights_in(constant)
