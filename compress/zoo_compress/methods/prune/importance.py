"""How much each head, channel or residual dimension matters.

    magnitude    sum of squares over all slices that would go together (DepGraph, 2301.12900, group magnitude)
    activation   L2 norm over samples of the mean |activation| over tokens (Minitron, 2407.14679, section 2.2)

Scores are compared within one layer only, so their scale does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.modules import grouped_by_module
from zoo.anatomy.parts import FFN, Attention, Part
from zoo.model.context import Progress
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import Watcher, watch
from zoo_compress.methods.prune.cut import holders

Scores = dict[str, Tensor]  # path of a down, o or norm module -> sum over samples of (mean |a|)^2, per unit


def magnitude(module: nn.Module, parts: Iterable[Part], *, experts: bool = False) -> Tensor:
    """Sum of squares over every entry that a unit owns in `parts`: (units,), or (experts, units)."""
    total: Tensor | None = None
    for part in parts:
        for parameter, parameter_part in holders(module, part):
            score = _squares(parameter, parameter_part, experts=experts).cpu()
            total = score if total is None else total + score
    assert total is not None
    return total


def _squares(parameter: Tensor, part: Part, *, experts: bool) -> Tensor:
    axes = (0, part.axis) if experts else (part.axis,)
    rest = tuple(axis for axis in range(parameter.dim()) if axis not in axes)
    # in double: the squares of float32 reach from 1e-90 to 1e77
    norms = torch.linalg.vector_norm(parameter.detach(), dim=rest, dtype=torch.float64) if rest else parameter.detach()
    owned = part.indices(torch.arange(part.units)).to(norms.device)
    entries = norms.double().square()[..., owned]
    return entries.view(*entries.shape[:-1], part.units, part.width).sum(-1)


@torch.no_grad()
def activation(
    model: Model,
    data: Sequence[Batch],
    *,
    ffns: Sequence[FFN],
    attentions: Sequence[Attention],
    norms: Sequence[str],
    progress: Progress | None = None,
) -> Scores:
    """Score FFN channels, heads and residual dimensions by their activations on calibration batches, each one sample.

    A module used at several places adds up its uses.

    Raises:
        ZooError: an activation is nan or infinite; names the module and the samples.
    """
    scores: Scores = {}

    def add(path: str, measure: Callable[..., Tensor]) -> Watcher:
        def see(*seen: Any) -> None:
            scores[path] = scores.get(path, 0) + measure(*seen).double().cpu()

        return see

    measures: dict[str, Callable[..., Tensor]] = {path: lambda _, wrote, *__: _mean_absolute(wrote) for path in norms}
    for ffn in ffns:
        if ffn.experts:
            measures[ffn.path] = partial(_expert_channels, model.module.get_submodule(ffn.path))
        else:
            measures[ffn.down.path] = lambda read, *_: _mean_absolute(read)
    for layer in attentions:
        measures[layer.o.path] = partial(_mean_head_norm, (layer.heads, layer.head_dim))
    places = [paths[0] for paths in grouped_by_module(model.module, measures)]
    watch(model, data, {path: add(path, measures[path]) for path in places}, progress=progress)
    return scores


def _mean_absolute(x: Tensor) -> Tensor:
    """(..., units) -> (units,): the squared mean over tokens of |x|."""
    return x.detach().float().abs().flatten(0, -2).mean(0).double().square()


def _mean_head_norm(shape: tuple[int, int], x: Tensor, *_: Any) -> Tensor:
    """(..., heads * head_dim) -> (heads,): the squared mean over tokens of each head's norm."""
    norms: Tensor = torch.linalg.vector_norm(x.detach().reshape(-1, *shape), dim=-1, dtype=torch.float64)
    return norms.mean(0).square()


def _expert_channels(experts: Any, hidden: Tensor, _: Tensor, chosen: Tensor, *__: Any) -> Tensor:
    """(experts, channels): as `_mean_absolute`, per expert on the tokens it received."""
    hidden = hidden.flatten(0, -2)
    scores = []
    for index, (gate_up, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
        seen = hidden[(chosen.flatten(0, -2) == index).any(-1)]
        gate, up = nn.functional.linear(seen, gate_up).chunk(2, dim=-1)
        none = down.new_zeros(down.shape[-1], dtype=torch.float64)
        scores.append(_mean_absolute(experts.act_fn(gate) * up) if len(seen) else none)
    return torch.stack(scores)
