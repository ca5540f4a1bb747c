"""How much each head, channel or residual dimension matters.

    magnitude    sum of squares over all slices that would go together (DepGraph, 2301.12900, group magnitude)
    activation   of a residual dimension the L2 norm over samples of the mean |activation| over tokens (Minitron, 2407.14679,
                 section 2.2); of a channel of an expert E[x^2] |w_down|^2 (of other channels and of heads: `readers.py`)

Scores are compared within one layer only, so their scale does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.modules import grouped_by_module
from zoo.anatomy.parts import FFN, Part
from zoo.model.context import Progress
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import Watcher, watch
from zoo_compress.methods.prune.cut import holders

Scores = dict[str, Tensor]  # path of a norm or of experts -> the score of each unit


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
    experts: Sequence[FFN],
    norms: Sequence[str],
    progress: Progress | None = None,
) -> Scores:
    """Score residual dimensions and the channels of experts by their activations on calibration batches, each one sample.

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
    for ffn in experts:
        measures[ffn.path] = partial(_expert_channels, model.module.get_submodule(ffn.path))
    places = [paths[0] for paths in grouped_by_module(model.module, measures)]
    watch(model, data, {path: add(path, measures[path]) for path in places}, progress=progress)
    return scores


def _mean_absolute(x: Tensor) -> Tensor:
    """(..., units) -> (units,): the squared mean over tokens of |x|."""
    return x.detach().float().abs().flatten(0, -2).mean(0).double().square()


def _expert_channels(experts: Any, hidden: Tensor, _: Tensor, chosen: Tensor, *__: Any) -> Tensor:
    """(experts, channels): the sum of x^2 over the tokens that each expert received, times |w_down|^2."""
    hidden = hidden.flatten(0, -2)
    scores = []
    for index, (gate_up, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
        received = hidden[(chosen.flatten(0, -2) == index).any(-1)]
        gate, up = nn.functional.linear(received, gate_up).chunk(2, dim=-1)
        x = (experts.act_fn(gate) * up).double()
        scores.append(x.square().sum(0) * down.detach().double().square().sum(0))
    return torch.stack(scores)
