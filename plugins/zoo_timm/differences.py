"""Where a module is another than timm's plain architecture, which decides whether timm can load what was made of it."""

from __future__ import annotations

import torch
from torch import nn


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def first_difference(module: nn.Module, plain: nn.Module) -> str:
    """Say where `module` differs from the plain architecture in classes, shapes, sharing or whole numbers; "" where nowhere."""
    mine, theirs = dict(module.named_modules(remove_duplicate=False)), dict(plain.named_modules(remove_duplicate=False))
    for name in [*mine, *theirs]:
        ours, other = mine.get(name), theirs.get(name)
        if ours is None or other is None or type(ours) is not type(other):
            return f"{name} is {type(ours).__name__ if ours else 'absent'}, in timm {type(other).__name__ if other else 'absent'}"
        if _numbers(ours) != _numbers(other):
            return f"{name} runs with {_numbers(ours)}, in timm with {_numbers(other)}"
    for (name, one), (_, two) in zip(sorted(_shapes(module).items()), sorted(_shapes(plain).items()), strict=True):
        if one != two:
            return f"{name} is {one}, in timm {two}"
    return ""


def _shapes(module: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of every tensor, and the first name of the same one."""
    first: dict[int, str] = {}
    return {
        name: (tuple(t.shape), first.setdefault(id(t), name)) for name, t in module.state_dict(keep_vars=True).items()
    }


def _numbers(part: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(part).items() if type(value) is int and not name.startswith("_")}
