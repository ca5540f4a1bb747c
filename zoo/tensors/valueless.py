"""Tensors that have a shape, a dtype and a device, and no values: what stands for the weights of a module that is built empty."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Valueless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, what is written into its tensors is dropped, and copies of them have no values either.

    Each is one number, seen as often as its shape says. Reading gives zeros.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: dict[int, torch.Tensor] = {}  # by address; held, so that no other tensor comes to lie there

    def empty(self, parameter: nn.Parameter) -> None:
        """Take its values from a parameter on the CPU; it stays the same object, which others may share."""
        if parameter.device.type == "cpu" and not self._holds(parameter):
            parameter.data = self._make(parameter.shape, parameter.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("out", args[0] if args else None)
        if not isinstance(target, torch.Tensor) or not self._holds(target):
            return func(*args, **kwargs)
        if func in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default):
            if torch.device(kwargs.get("device") or "cpu").type != "cpu":
                return func(*args, **kwargs)
            return self._make(target.shape, kwargs.get("dtype") or target.dtype)
        return target if func._schema.is_mutable else func(*args, **kwargs)

    def _make(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        number = torch.zeros((), dtype=dtype, device="cpu")
        self.numbers[number.untyped_storage().data_ptr()] = number
        return number.expand(shape)

    def _holds(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self.numbers
