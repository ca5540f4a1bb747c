"""Building modules without their weights, and the dtype that each tensor has when a model runs in another."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


global_state = threading.RLock()  # of torch, which building a model changes for a moment: one thread at a time


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose parameters are on the meta device and whose buffers, such as rotary tables, are real.

    While it is built, its parameters are on the CPU, since many modules put their buffers where a parameter is, and
    compute them only where that is not meta; but each takes the memory of one number, and writing into it does nothing.
    accelerate's `init_empty_weights` puts parameters on the meta device at once, and takes tied ones apart.
    """
    import torch
    from torch import nn

    from zoo.tensors.valueless import Valueless

    here = threading.get_ident()  # modules that other threads make meanwhile are theirs

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == here:
            valueless.empty(parameter)
        register(module, name, parameter)

    with global_state, torch.random.fork_rng(devices=[]), Valueless() as valueless:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
        try:
            module = build()
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
    _to_meta(module)
    return module


def _to_meta(module: nn.Module) -> None:
    """Move parameters to the meta device; what is shared stays shared."""
    from torch import nn

    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        parameter.data.to("meta"), requires_grad=parameter.requires_grad
                    )
                part._parameters[name] = moved[id(parameter)]


def build_as_loaded(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Build a module of transformers or diffusers as their `from_pretrained(dtype=...)` does, for `build_in` of a family.

    Floats are in `dtype` where the class says nothing else, what it keeps in float32 is, and buffers hold the same numbers:
    transformers computes its own once more when the dtype is no longer the default one.
    """
    import torch

    with _default_dtype(dtype):
        module = build()
    if not torch.empty(0).is_meta:
        for part in module.modules():
            part._is_hf_initialized = False  # type: ignore[assignment]
        for part in module.modules():
            if hasattr(part, "initialize_weights"):
                part.initialize_weights()  # type: ignore[operator]
    _keep_in_float32(module, dtype)
    return module


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    with global_state:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast float parameters in place; buffers (rotary tables, packed codes and scales) keep their dtype.

    So do the parameters of a normalisation with running statistics, which runs in the dtype of those, and what a class
    keeps in float32.
    """
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point() and getattr(part, "running_mean", None) is None:
                parameter.data = parameter.data.to(dtype)
    _keep_in_float32(module, dtype)


def _keep_in_float32(module: nn.Module, dtype: torch.dtype) -> None:
    import torch

    tensors = module.state_dict(keep_vars=True)
    for name in kept_in_float32(module, dtype):
        if tensors[name].is_floating_point():
            tensors[name].data = tensors[name].data.to(torch.float32)


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> frozenset[str]:
    """The saved tensors that classes of transformers and diffusers keep in float32 where the rest of a model is in `dtype`.

    Routers and the decays of recurrent mixers, mostly: by the same rules as their `from_pretrained(dtype=...)`.
    """
    kept: set[str] = set()
    for path, part in module.named_modules():
        rule = _rule_of(part, dtype)
        if rule is not None:
            prefix = f"{path}." if path else ""
            kept.update(f"{prefix}{name}" for name in part.state_dict(keep_vars=True) if rule(name))
    return frozenset(kept)


def _rule_of(part: Any, dtype: torch.dtype) -> Callable[[str], object] | None:
    """Which names a model of a library keeps in float32; None where there are none."""
    if hasattr(part, "_get_dtype_plan"):  # transformers: patterns, found anywhere in a name
        patterns = [pattern.replace("*", ".*") for pattern in part._get_dtype_plan(dtype)]
        return re.compile("|".join(patterns)).search if patterns else None
    words = getattr(part, "_keep_in_fp32_modules", None)  # diffusers: whole steps of a path
    return (lambda name: not set(words).isdisjoint(name.split("."))) if words else None


def assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or a buffer."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = tensor  # type: ignore[assignment]


def cast_named(module: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Cast tensors by name, saved or not, to the dtypes given by name."""
    import torch

    for name, dtype in dtypes.items():
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(module.get_submodule(owner), leaf)
        tensor.data = tensor.data.to(getattr(torch, dtype))
