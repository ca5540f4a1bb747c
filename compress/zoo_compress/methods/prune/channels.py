"""Channel pruning of modules that read no tokens (convolutional nets, UNets, vision towers), by dependency graph.

DepGraph (2301.12900) through torch-pruning: one traced forward pass finds which channels must go together. The library
can be silently wrong, so its result is checked: parameters must have gone, and the model must run and give outputs of
the same shape. The record holds the resulting shapes, from which an empty module is rebuilt without the library.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.modules import container
from zoo.errors import ArtifactError, Refused, UnknownName, nearest, reason
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo.model.trial import UNFIT

MOST_CHANNELS = 1_000_000  # of all steps within a group of coupled layers, each counted as ten more: some seconds
QKV = ("to_q", "q_proj", "query", "qkv", "q")  # a module with one of these is attention: its heads stay whole


def check(model: Model, target: str, ratio: float, *, stage: str) -> None:
    """Refuse text models, whose blocks the exact path cuts right and the graph silently wrong, and targets that are no module."""
    part = _part(model, target)
    if any(isinstance(getattr(inner, "num_embeddings", None), int) for inner in part.modules()):
        raise Refused(
            f"{stage}: {type(part).__name__} has transformer blocks ({', '.join(model.anatomy.stacks) or 'unknown'}); "
            "give ffn, heads, kv_groups or width instead of ratio."
        )
    outline(model, target, ratio, stage=stage)


def outline(model: Model, target: str, ratio: float, *, stage: str) -> Record:
    """Prune a copy with constant weights: how many channels go does not depend on their values."""
    module = copy.deepcopy(model.module).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(1)
    return _apply(replace(model, module=module), target, ratio, stage=stage)


def apply(model: Model, target: str, ratio: float, *, stage: str) -> Record:
    """Remove `ratio` of the channels of every group of coupled layers in the part `target` names; what it returns keeps its shape.

    Returns:
        The shapes and numbers that changed.

    Raises:
        Refused: the graph cannot be traced, nothing was removed, or the result does not run. The model is as it was.
    """
    trial = replace(model, module=copy.deepcopy(model.module))
    record = _apply(trial, target, ratio, stage=stage)
    vars(model.module).update(vars(trial.module))
    return record


def _apply(model: Model, target: str, ratio: float, *, stage: str) -> Record:
    module, part = model.module, _part(model, target)
    name = type(part).__name__
    shapes, before = _shapes(module), _numbers(module)
    ties = [names for names, _ in model._named() if len(names) > 1]
    try:
        inputs, output, last = _run_watching(model, part, stage=stage)
    except UNFIT as error:  # tables of indices are not what they say there
        raise Refused(
            f"{stage}: {name} cannot be pruned by its graph: it does not run with constant weights ({reason(error)})."
        ) from error
    try:
        with torch.random.fork_rng(devices=[]), _traceable(part), _indexed_groups(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parameters outside layers, which stay: gains of heads that stay whole
            sizes = _channels(part)
            _prune(part, inputs, ratio, ignored=[last, *_attention_projections(part), *_fused_ffns(model)])
            _declare_channels(part, sizes)
        _tie_again(module, ties)
        with torch.no_grad():
            after = _tensors(part(*inputs[0], **inputs[1]))
    except Refused:
        raise
    except Exception as error:  # whatever a third-party tracer meets
        raise Refused(
            f"{stage}: {name} cannot be pruned by its graph ({reason(error)}). Where its channels reach beyond it, aim at the module around it."
        ) from error
    if [tensor.shape for tensor in after] != [tensor.shape for tensor in output]:
        raise Refused(f"{stage}: pruned, {name} gives {tuple(after[0].shape)} where it gave {tuple(output[0].shape)}.")
    changed = {path: shape for path, shape in _shapes(module).items() if shapes.get(path) != shape}
    if not changed:
        raise Refused(f"{stage}: nothing in {name} could be pruned by {ratio:.0%}; a larger ratio may help.")
    changes = {path: _difference(before.get(path, {}), values) for path, values in _numbers(module).items()}
    numbers = {path: change for path, change in changes.items() if change}
    return {"graph": {"shapes": changed, "numbers": numbers}, "ratio": ratio}


def _part(model: Model, target: str) -> nn.Module:
    """The module to prune: that at the path `target`, or around the stack of that name; for "all", or without stacks, the whole."""
    module, stacks = model.module, model.anatomy.stacks
    paths = {path for path, _ in module.named_modules() if path}
    if target in paths:
        return module.get_submodule(target)
    if target == "all" or (target == "language" and not stacks):  # the default, where there is nothing to aim at
        return module
    if target in stacks:
        others = [stack.path for name, stack in stacks.items() if name != target]
        return module.get_submodule(container(stacks[target].path, others))
    top = [path for path, _ in module.named_children()]
    raise UnknownName(
        f"With ratio, target is a module, and the model has none at {target!r}.{nearest(target, paths)} Its parts: {', '.join(top)}."
    )


def rebuild(model: Model, record: Record) -> None:
    """Give an empty module the recorded shapes and numbers."""
    module, graph = model.module, record["graph"]
    ties = [names for names, _ in model._named() if len(names) > 1]
    for path, shape in graph["shapes"].items():
        owner, name = _owner(module, path)
        old = owner._parameters.get(name, owner._buffers.get(name))
        if old is None:
            raise ArtifactError(f"{path} was pruned to {shape}, but {type(module).__name__} has no such tensor.")
        if len(shape) != old.dim() or not all(
            type(new) is int and 0 < new <= was for new, was in zip(shape, old.shape, strict=True)
        ):
            raise ArtifactError(f"{path} cannot have been pruned from {tuple(old.shape)} to {shape}.")
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        if name in owner._parameters:
            owner._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            owner._buffers[name] = new
    for path, numbers in graph["numbers"].items():
        known = _numbers_of(module.get_submodule(path))
        for name, value in numbers.items():
            if type(value) is not type(known.get(name)) or not all(
                type(number) is int for number in (value if isinstance(value, list) else [value])
            ):
                raise ArtifactError(f"{path} has no number {name!r} that pruning could have made {value!r}.")
            setattr(module.get_submodule(path), name, tuple(value) if isinstance(value, list) else value)
    _tie_again(module, ties)


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _prune(part: nn.Module, inputs: Inputs, ratio: float, *, ignored: list[nn.Module]) -> None:
    import torch_pruning

    class Pruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
        """Takes the same share of every source where a layer reads several, side by side."""

        def estimate_importance(self, group: Any) -> Tensor | None:
            importance: Tensor | None = super().estimate_importance(group)
            if importance is None:
                return None
            return _by_share(importance, _sources(group, len(importance)), self._get_channel_groups(group))

    pruner = Pruner(
        part,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        forward_fn=lambda module, given: _tensors(module(*given[0], **given[1])),
    )
    pruner.step()


@contextmanager
def _indexed_groups() -> Iterator[None]:
    """Let torch-pruning look up whether a group has a step, which it compares with all of them, and end one that only grows.

    Where one channel scales many (FocalNet's gates), it finds steps to the same layers with other channels without end; where
    places are channels too (EfficientViM), there are millions.
    """
    from torch_pruning.dependency.group import Group

    class Indexed(Group):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: set[Any] = set()
            self._channels = 0

        def add_dep(self, dep: Any, idxs: Any) -> None:
            super().add_dep(dep, idxs)
            self._channels += len(idxs) + 10
            if self._channels > MOST_CHANNELS:
                root = self[0].dep.target.name.partition(" ")[0]
                raise RuntimeError(f"the layers that depend on {root} have too many channels to follow")
            self._steps.add((dep.target, dep.handler, tuple(idxs)))

        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return (dep.target, dep.handler, tuple(idxs)) in self._steps

    import torch_pruning.dependency.graph as graph

    graph.Group = Indexed
    try:
        yield
    finally:
        graph.Group = Group


def _sources(group: Any, count: int) -> list[tuple[int, ...]]:
    """For each of the `count` channels of a group, which of the layers coupled by it have that channel."""
    sources: list[tuple[int, ...]] = [()] * count
    for number, item in enumerate(group):
        for channel in {root for root in item.root_idxs if root is not None}:
            sources[channel] += (number,)
    return sources


def _by_share(importance_C: Tensor, sources: list[tuple[int, ...]], groups: int) -> Tensor:
    """Order channels so that the least important ones, however many are taken, are the same share of every source.

    Ranked together, how many channels each of two layers loses whose outputs are joined (CSPNeXt's attention) would follow
    from the weights, and with it how many parameters are left. Channels of one source keep their order.

    Args:
        importance_C: of each channel (C,), `groups` times the same number of dimensions, which go together.

    Returns:
        What to rank by, (C,): the importance itself where all channels have the same sources.
    """
    if len(set(sources)) < 2:
        return importance_C
    importance_D = importance_C.view(groups, -1).mean(0)
    size = len(importance_D)
    members: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i in range(size):
        members.setdefault(tuple(sources[i::size]), []).append(i)
    keys: dict[int, tuple[float, int]] = {}
    for number, indices in enumerate(members.values()):
        for place, at in enumerate(importance_D[indices].argsort(stable=True).tolist()):
            keys[indices[at]] = ((place + 0.5) / len(indices), number)
    rank_D = torch.tensor(sorted(keys, key=keys.__getitem__)).argsort()
    return rank_D.float().repeat(groups)


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


def _run_watching(model: Model, part: nn.Module, *, stage: str) -> tuple[Inputs, list[Tensor], nn.Module]:
    """Run once: what the part read and gave, and its last layer used, whose channels are its output's and stay."""
    seen: list[tuple[Inputs, Any]] = []
    used: list[nn.Module] = []
    layers = [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(lambda layer, _, __: used.append(layer)) for layer in layers]
    handles.append(
        part.register_forward_hook(lambda _, args, kwargs, out: seen.append(((args, kwargs), out)), with_kwargs=True)
    )
    try:
        with torch.no_grad():
            model.family.forward(model, model.family.example(model, batch=1, size=16))
    finally:
        for handle in handles:
            handle.remove()
    if not used or not seen:
        inner = [path for path, _ in part.named_children()]
        raise Refused(
            f"{stage}: {type(part).__name__} does not run as one module with layers to prune; aim at a part of it: {', '.join(inner) or 'it has none'}."
        )
    return seen[0][0], _tensors(seen[0][1]), used[-1]


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of whatever a module returns."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _attention_projections(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if any(isinstance(getattr(part, name, None), nn.Module) for name in QKV)]


def _fused_ffns(model: Model) -> list[nn.Module]:
    """Layers that hold gate and up in one: which units the two halves lose, and so how many, would follow from the weights."""
    ffns = [block.ffn for stack in model.anatomy.stacks.values() for block in stack.blocks if block.ffn]
    return [
        model.module.get_submodule(ffn.up.path)
        for ffn in ffns
        if ffn.gate and ffn.gate.path == ffn.up.path and not ffn.experts
    ]


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
    return {path: _numbers_of(part) for path, part in module.named_modules()}


def _numbers_of(part: nn.Module) -> dict[str, Any]:
    """Whole numbers, and tuples of them, that a module keeps as plain attributes."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(part).items()
        if not name.startswith("_") and (whole(value) or (isinstance(value, tuple) and all(map(whole, value))))
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before.get(name) != value}
