"""Experts in one tensor as a list of linear layers, so that whatever treats layers one by one reaches each expert.

transformers 5 holds the experts of a block in parameters with a leading axis of experts. Its experts interface
(`transformers/integrations/moe.py`) multiplies them in one of several ways that give the same up to rounding, from what the class
says of itself: `has_gate`, `is_transposed`, `is_concatenated`, `has_bias`, `has_post_expert_norm`. A module that goes through it is
replaced by an `ExpertList`: for each expert a linear layer up (gate and up in one, as they lie) and one down, which read the very
same weights until they are packed. Its class is that of transformers with another forward, so that gating, activation, limits and
norm stay what they are. Other modules are left as they are, and `unlisted` says why.
"""

# E experts, T tokens, K experts that a token takes, N tokens of one expert, O outputs, I inputs

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.coverage import TABLES, tables_of
from zoo.anatomy.linears import expert_tables
from zoo.anatomy.modules import grouped_by_module
from zoo.errors import ArtifactError
from zoo.model.model import Model

IMPLEMENTATIONS = (None, "eager", "batched_mm", "grouped_mm")  # of the interface, which all compute the same


class Expert(nn.Module):
    """The layers of one expert; `ExpertList` runs them."""

    def __init__(self, *, up: str, interleaved: bool) -> None:
        super().__init__()
        self.up, self.interleaved = up, interleaved  # what its first layer is called; whether gate and up go by turns
        self.taken: tuple[Tensor, int] | None = None  # which tokens it took when it last ran, of how many

    def without_padding(self, x_ND: Tensor, kept_BT: Tensor | None) -> Tensor:
        """What one of its layers reads, without the tokens that are padding."""
        if kept_BT is None or self.taken is None or self.taken[1] != kept_BT.numel():
            return x_ND
        return x_ND[kept_BT.flatten()[self.taken[0]]]


class ExpertList(nn.Module):
    """Runs the experts one after another, each on the tokens that chose it, in a fixed order: of places, then of tokens."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        tokens = len(hidden_states)
        experts = [part for part in self._modules.values() if isinstance(part, Expert)]
        sum_TD = torch.zeros_like(hidden_states)
        expert_KT = top_k_index.t().reshape(-1)
        order_KT = expert_KT.argsort(stable=True)
        token_KT, weight_KT1 = order_KT % tokens, top_k_weights.t().reshape(-1, 1)[order_KT]
        start = 0
        for expert, count in zip(experts, _counts(expert_KT, len(experts)), strict=True):
            if not count:
                continue
            stop = start + count
            token_N = token_KT[start:stop]
            expert.taken = token_N, tokens
            y_ND = self._run(expert, hidden_states[token_N]) * weight_KT1[start:stop]
            sum_TD.index_add_(0, token_N, y_ND.to(sum_TD.dtype))
            start = stop
        return sum_TD

    def _run(self: Any, expert: Any, x_ND: Tensor) -> Tensor:
        x: Tensor = getattr(expert, expert.up)(x_ND)
        x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
        x = expert.down_proj(x)
        return self.post_expert_norm(x) if self.has_post_expert_norm else x


def _counts(expert_KT: Tensor, experts: int) -> list[int]:
    """How many tokens each expert has; of indices that have no values (a dry run), an even share. Others (masked) have none."""
    if type(expert_KT) is not Tensor or expert_KT.is_meta:
        return [len(expert_KT) // experts + (number < len(expert_KT) % experts) for number in range(experts)]
    counts: list[int] = torch.bincount(expert_KT, minlength=experts).tolist()
    return counts[:experts]


# --- which modules --------------------------------------------------------------------------------------------------


def unlisted(experts: nn.Module) -> str:
    """Why a module with experts in one tensor cannot be a list, by class and attribute; "" where it can."""
    from transformers.integrations import moe

    kind, about = type(experts).__name__, vars(experts)
    if "forward" in about or type(experts).forward.__code__.co_filename != moe.__file__:
        return f"{kind}.forward does not go through transformers' experts interface"
    implementation = getattr(about["config"], "_experts_implementation", None)
    if implementation not in IMPLEMENTATIONS:
        return f"{kind}.config._experts_implementation is {implementation!r}"
    if about["_is_expert_parallel"]:
        return f"{kind}._is_expert_parallel is set"
    up = _up(experts)
    known = {up, "down_proj", *((f"{up}_bias", "down_proj_bias") if about["has_bias"] else ())}
    tensors = {name: t for held in (experts._parameters, experts._buffers) for name, t in held.items() if t is not None}
    if unknown := sorted(tensors.keys() ^ known):
        return f"{kind}.{unknown[0]} is {'not known' if unknown[0] in tensors else 'missing'}"
    (count, outputs, inputs), (_, width, inner) = (_shape(experts, tensors[name]) for name in (up, "down_proj"))
    if outputs != inner * (2 if about["has_gate"] else 1) or width != inputs or len(tensors["down_proj"]) != count:
        return f"{kind}.{up} {tuple(tensors[up].shape)} does not go with down_proj {tuple(tensors['down_proj'].shape)}"
    return ""


def _up(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _shape(experts: Any, table: Tensor) -> tuple[int, ...]:
    """(E, O, I) of a table."""
    return tuple((table.transpose(1, 2) if experts.is_transposed else table).shape) if table.dim() == 3 else (0, 0, 0)


def table_shape(experts: nn.Module, name: str) -> tuple[int, ...]:
    """(E, O, I) of the table of that name."""
    return _shape(experts, getattr(experts, name))


def listable(module: nn.Module) -> set[str]:
    """Paths of the modules with experts in one tensor that can be lists."""
    owners = dict.fromkeys(path.rpartition(".")[0] for path in expert_tables(module, ""))
    return {path for path in owners if not unlisted(module.get_submodule(path))}


# --- lists in their place -------------------------------------------------------------------------------------------


def listed(model: Model, only: Collection[str] | None = None) -> Model:
    """The model with lists in place of experts in one tensor, for looking at: weights and all other modules are shared.

    Args:
        only: which of them; all by default.
    """
    paths = [path for path in listable(model.module) if only is None or path in only]
    if not paths:
        return model
    lists = {id(experts): _as_list(experts) for experts in map(model.module.get_submodule, paths)}
    return replace(model, module=_with(model.module, lists))


def install(module: nn.Module, paths: Iterable[str], *, packed: Collection[str] = ()) -> None:
    """Put lists in the place of experts in one tensor; those that are lists already stay.

    Args:
        packed: layers that the caller packs; the others get weights of their own, so that the tensor can go.

    Raises:
        ArtifactError: they cannot be a list; says why.
    """
    for group in grouped_by_module(module, paths):
        experts = module.get_submodule(group[0])
        if isinstance(experts, ExpertList):
            continue
        if reason := unlisted(experts):
            raise ArtifactError(f"{group[0]} was made a list of experts, which it cannot be here: {reason}.")
        new = _as_list(experts)
        for name, part in new.named_modules(prefix=group[0]):
            if isinstance(part, nn.Linear) and name not in packed:
                part.weight.data = part.weight.data.clone(memory_format=torch.contiguous_format)
        for path in group:
            module.set_submodule(path, new)


def lists_of(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """The lists of experts that `paths` of layers are in."""
    above = dict.fromkeys(path.rpartition(".")[0].rpartition(".")[0] for path in paths)
    return [path for path in above if isinstance(module.get_submodule(path), ExpertList)]


def tables_behind(lists: Iterable[str], module: nn.Module) -> list[str]:
    """The parameters, in the module as it was, that lists of experts stand for."""
    return [path for path in expert_tables(module, "") if path.rpartition(".")[0] in lists]


def table_of(lists: Collection[str], path: str) -> str:
    """The parameter that a layer of one of `lists` is a part of; any other path as it is."""
    expert, _, name = path.rpartition(".")
    owner = expert.rpartition(".")[0]
    return f"{owner}.{name}" if owner in lists else path


def kept_tables(module: nn.Module, paths: Iterable[str], lists: Collection[str]) -> dict[str, list[str]]:
    """Those of `paths` that are experts in one tensor and stay so, by why: in words for the record."""
    kept: dict[str, list[str]] = {}
    for path in tables_of(module, paths):
        owner = path.rpartition(".")[0]
        if owner not in lists:
            reason = unlisted(module.get_submodule(owner))
            kept.setdefault(f"{TABLES}, since {reason}" if reason else TABLES, []).append(path)
    return kept


def moved(lists: Collection[str], path: str) -> str:
    """Where what was known of `path` is known of once there are lists: of a table, at the list."""
    owner = path.rpartition(".")[0]
    return owner if owner in lists else path


def _as_list(experts: Any) -> ExpertList:
    """A list of the experts of a module, whose layers share its weights."""
    new = copy.copy(experts)
    new.__class__ = _kind(type(experts))  # type: ignore[arg-type]
    new._parameters, new._modules = {}, dict(experts._modules)
    up = _up(experts)
    for number in range(len(experts.down_proj)):
        expert = Expert(up=up, interleaved=experts.has_gate and not experts.is_concatenated)
        for name in (up, "down_proj"):
            table_EOI = getattr(experts, name)
            weight_OI = table_EOI.detach()[number]
            bias_EO = getattr(experts, f"{name}_bias") if experts.has_bias else None
            expert.add_module(name, _linear(weight_OI.t() if experts.is_transposed else weight_OI, bias_EO, number))
        new.add_module(str(number), expert.train(experts.training))
    return new  # type: ignore[no-any-return]


def _linear(weight_OI: Tensor, bias_EO: Tensor | None, number: int) -> nn.Linear:
    outputs, inputs = weight_OI.shape
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI)
    if bias_EO is not None:
        linear.bias = nn.Parameter(bias_EO.detach()[number].clone())
    return linear


@lru_cache
def _kind(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (ExpertList, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _with(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """A copy of the modules that hold what was made anew, each once; `made` is by the id of what was there."""
    if id(module) in made:
        return made[id(module)]  # type: ignore[no-any-return]
    children = {name: child and _with(child, made) for name, child in module._modules.items()}
    new = module
    if any(child is not module._modules[name] for name, child in children.items()):
        new = copy.copy(module)
        new._modules = children
    made[id(module)] = new
    return new
