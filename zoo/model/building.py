"""Building modules without their weights: parameters on the meta device, buffers real, and one cast for all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


global_state = threading.RLock()  # of torch, which building a model changes for a moment: one thread at a time


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Put every parameter on the meta device as it is registered; buffers, such as rotary tables, become real.

    accelerate's `init_empty_weights` does the same but takes tied parameters apart. Modules that other threads make
    meanwhile are theirs.
    """
    from torch import nn

    here = threading.get_ident()

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta" and threading.get_ident() == here:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with global_state:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast float parameters in place; buffers (rotary tables, packed codes and scales) keep their dtype.

    So do the parameters of a normalisation with running statistics, which runs in the dtype of those.
    """
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point() and getattr(part, "running_mean", None) is None:
                parameter.data = parameter.data.to(dtype)
