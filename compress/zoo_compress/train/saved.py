"""What a training step keeps for its backward pass, counted from shapes alone.

A copy of the model runs on fake tensors, which have shapes and no memory, and every storage that autograd would keep is
counted once. So the figure follows from the model's own forward pass, whatever its modality.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from zoo.errors import ZooError
from zoo.model import Model


def saved_bytes(model: Model, *, batch: int, size: int) -> tuple[int, int]:
    """Return the bytes that a forward pass in float32 keeps for the backward pass, without weights, and those of its output.

    Args:
        size: tokens of a window, for models that read text.

    Raises:
        ZooError: the model's forward pass depends on values, so that shapes do not suffice.
    """
    module = copy.deepcopy(model.module)
    example = model.family.example(model, batch=batch, size=size)
    kept: dict[int, Tensor] = {}
    with FakeTensorMode():
        _empty(module)
        weights = {p.untyped_storage()._cdata for p in (*module.parameters(), *module.buffers())}

        def keep(tensor: Tensor) -> Tensor:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
            return tensor

        inputs = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in example.items()}
        try:
            with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
                output = model.family.forward(replace(model, module=module), inputs)  # kept alive: so are its storages
        except RuntimeError as error:
            raise ZooError(f"the memory of training {model.spec.name} cannot be told from shapes: {error}") from error
        activations = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
        return activations, output.numel() * 4


def _empty(module: nn.Module) -> None:
    """Give a module fake float32 parameters and fake buffers, shared where they were."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    dtype = torch.float32 if old.is_floating_point() else old.dtype
                    new = torch.empty(old.shape, dtype=dtype)
                    made[id(old)] = nn.Parameter(new, requires_grad=dtype == torch.float32) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[id(old)]
