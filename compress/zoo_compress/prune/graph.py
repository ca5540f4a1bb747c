"""Channel pruning of modules without transformer blocks (convolutional nets, UNets), by dependency graph.

DepGraph (2301.12900) through torch-pruning: one traced forward pass finds which channels must go together. The library
can be silently wrong, so its result is checked: parameters must have gone, and the model must run and give outputs of
the same shape. The record holds the resulting shapes, from which an empty module is rebuilt without the library.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compressor import Record
from zoo.errors import ArtifactError, Refused, one_line
from zoo.model import Model

QKV = ("to_q", "q_proj", "query", "qkv", "q")  # a module with one of these is attention: its heads stay whole


def check(model: Model, target: str, *, stage: str) -> None:
    """Refuse models that have recognised blocks: there the exact path is right, and the graph silently wrong."""
    stacks = model.anatomy.stacks
    if target in stacks:
        raise Refused(
            f"{stage}: {type(model.module).__name__} has transformer blocks ({', '.join(stacks)}); "
            "give ffn, heads, kv_groups or width instead of ratio."
        )
    if target != "language":
        model.anatomy.select(target)


def outline(model: Model, ratio: float, *, stage: str) -> Record:
    """Prune a copy with constant weights: how many channels go does not depend on their values."""
    module = copy.deepcopy(model.module).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(1)
    return apply(replace(model, module=module), ratio, stage=stage)


def apply(model: Model, ratio: float, *, stage: str) -> Record:
    """Remove `ratio` of the channels of every group of coupled layers; return the shapes and numbers that changed.

    Raises:
        Refused: the graph cannot be traced, nothing was removed, or the result does not run.
    """
    module = model.module
    name = type(module).__name__
    shapes, before = _shapes(module), _numbers(module)
    ties = [names for names, _ in model._named() if len(names) > 1]
    batch = model.family.example(model, batch=1, size=16)
    with torch.no_grad():
        output, last = _run_watching(model, batch)
    try:
        with torch.random.fork_rng(devices=[]), _traceable(module):
            sizes = _channels(module)
            _prune(model, batch, ratio, ignored=[last, *_attention_projections(module)])
            _declare_channels(module, sizes)
        _tie_again(module, ties)
        with torch.no_grad():
            after = model.family.forward(model, batch)
    except Refused:
        raise
    except Exception as error:  # whatever a third-party tracer meets
        raise Refused(f"{stage}: {name} cannot be pruned by its graph: {one_line(error)[:200]}") from error
    if after.shape != output.shape:
        raise Refused(f"{stage}: pruned, {name} gives {tuple(after.shape)} where it gave {tuple(output.shape)}.")
    changed = {path: shape for path, shape in _shapes(module).items() if shapes.get(path) != shape}
    if not changed:
        raise Refused(f"{stage}: nothing in {name} could be pruned by {ratio:.0%}; a larger ratio may help.")
    changes = {path: _difference(before.get(path, {}), values) for path, values in _numbers(module).items()}
    numbers = {path: change for path, change in changes.items() if change}
    return {"graph": {"shapes": changed, "numbers": numbers}, "ratio": ratio}


def rebuild(model: Model, record: Record) -> None:
    """Give an empty module the recorded shapes and numbers."""
    module, graph = model.module, record["graph"]
    ties = [names for names, _ in model._named() if len(names) > 1]
    for path, shape in graph["shapes"].items():
        owner, name = _owner(module, path)
        old = owner._parameters.get(name, owner._buffers.get(name))
        if old is None:
            raise ArtifactError(f"{path} was pruned to {shape}, but {type(module).__name__} has no such tensor.")
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            owner._buffers[name] = new
    for path, numbers in graph["numbers"].items():
        for name, value in numbers.items():
            setattr(module.get_submodule(path), name, tuple(value) if isinstance(value, list) else value)
    _tie_again(module, ties)


def _prune(model: Model, batch: Any, ratio: float, *, ignored: list[nn.Module]) -> None:
    import torch_pruning

    pruner = torch_pruning.pruner.BasePruner(
        model.module,
        batch,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        forward_fn=lambda _, inputs: model.family.forward(model, inputs),
    )
    pruner.step()


@contextmanager
def _traceable(module: nn.Module) -> Iterator[None]:
    """Switch off what tracing cannot follow: caches (they hang the graph walk), and parameters without gradient."""
    config = getattr(module, "config", None)
    cached = getattr(config, "use_cache", None)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    if isinstance(cached, bool):
        config.use_cache = False  # type: ignore[union-attr]
    module.requires_grad_(True)
    try:
        yield
    finally:
        if isinstance(cached, bool):
            config.use_cache = cached  # type: ignore[union-attr]
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
            parameter.grad = None


def _run_watching(model: Model, batch: Any) -> tuple[Tensor, nn.Module]:
    """Run once: the output, and the last layer used, whose channels are the output's and stay."""
    used: list[nn.Module] = []
    layers = [part for part in model.module.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [part.register_forward_hook(lambda part, _, __: used.append(part)) for part in layers]
    try:
        output = model.family.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not used:
        raise Refused(f"{type(model.module).__name__} uses no linear or convolution layer that could be pruned.")
    return output, used[-1]


def _attention_projections(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if any(isinstance(getattr(part, name, None), nn.Module) for name in QKV)]


def _channels(module: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        path: (part.in_channels, part.out_channels)
        for path, part in module.named_modules()
        if isinstance(part, nn.modules.conv._ConvNd)
    }


def _declare_channels(module: nn.Module, before: dict[str, tuple[int, int]]) -> None:
    """Correct what modules around a convolution say of its channels (diffusers' samplers assert it at run time)."""
    for path, (new_in, new_out) in _channels(module).items():
        old_in, old_out = before[path]
        around = module.get_submodule(path.rpartition(".")[0])
        for name, old, new in (
            ("channels", old_in, new_in),
            ("in_channels", old_in, new_in),
            ("out_channels", old_out, new_out),
        ):
            if vars(around).get(name) == old:
                setattr(around, name, new)


def _tie_again(module: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        owner, name = _owner(module, first)
        tensor = owner._parameters.get(name)
        for other in others:
            its_owner, its_name = _owner(module, other)
            its = its_owner._parameters.get(its_name)
            if tensor is None or its is None:
                continue
            if its.shape != tensor.shape:
                raise Refused(f"{first} and {other} were one tensor and would be cut differently.")
            its_owner._parameters[its_name] = tensor


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent), name


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {path: list(tensor.shape) for path, tensor in tensors}


def _numbers(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Whole numbers, and tuples of them, that modules keep as plain attributes."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    return {
        path: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(part).items()
            if not name.startswith("_") and (whole(value) or (isinstance(value, tuple) and all(map(whole, value))))
        }
        for path, part in module.named_modules()
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before.get(name) != value}
