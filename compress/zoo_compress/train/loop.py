"""The training loop: deterministic, resumable, under accelerate.

Which windows a step sees follows from (seed, step) alone, the learning rate from the step alone, and dropout is off; so
a run that is killed and resumed from its last checkpoint ends with the same weights as one left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from zoo.anatomy.modules import features, is_embedding, resolve
from zoo.errors import DataError, ZooError
from zoo.family.base import window_origin
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.system.signals import whole
from zoo.tensors.batch import Batch
from zoo_compress.train.checkpoint import Checkpoint
from zoo_compress.train.divergence import divergence
from zoo_compress.train.feed import batch_of, parts, shuffled
from zoo_compress.train.objective import TOKENS
from zoo_compress.train.options import trainable
from zoo_compress.train.schedules import wsd
from zoo_compress.train.team import Team

if TYPE_CHECKING:
    from accelerate import Accelerator

    from zoo.anatomy.parts import Anatomy
    from zoo_compress.train.objective import Objective
    from zoo_compress.train.options import TrainingOptions


def fit(
    model: Model,
    objective: Objective,
    windows: Sequence[Batch],
    *,
    options: TrainingOptions,
    context: Context,
    label: str,
) -> None:
    """Train `model` in place, in every process that was started along with this one.

    The batch of a step is run in parts, whose losses add up to those of the whole.

    Raises:
        DataError: there are no windows.
        ZooError: a loss or its gradient is not finite; names it, the step and the samples.
    """
    from accelerate import Accelerator

    if not len(windows):
        raise DataError(f"{label}: the data holds nothing to train on.")
    team = Team.here()
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    dtypes = _to_float32(model)
    training = _Training(accelerator, team, model, objective, windows, options=options, context=context, label=label)
    checkpoint = training.checkpoint
    steps = range(training.start, options.steps)
    with nullcontext() if team.rank else checkpoint.saved_on_interrupt(context, label=label):
        for step in context.progress.track(steps, total=options.steps - training.start, label=label):
            training.advance(step)
            if not team.rank:
                checkpoint.save(context, last=step + 1 == options.steps)
    for parameter in model.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _restore_dtype(model, dtypes)


class _Training:
    """A run of training: the parameters that are trained, their optimizer, and the windows its steps see."""

    def __init__(
        self,
        accelerator: Accelerator,
        team: Team,
        model: Model,
        objective: Objective,
        windows: Sequence[Batch],
        *,
        options: TrainingOptions,
        context: Context,
        label: str,
    ) -> None:
        self.accelerator, self.team = accelerator, team
        self.model, self.objective, self.windows = model, objective, windows
        self.options, self.context, self.label = options, context, label
        model.module.requires_grad_(False)
        trained = trainable(model, options)
        own = {id(p) for p in model.module.parameters()}
        extra = {f"objective.{n}": p for n, p in objective.named_parameters() if id(p) not in own}
        self.masks = sparse_masks(model)
        decayed = matrices(model.module, model.anatomy) | matrices(objective)
        groups = _groups([*trained.values(), *extra.values()], decayed, options)
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95))
        self.checkpoint = Checkpoint(context.checkpoint, {**trained, **extra}, optimizer)
        self.start = self.checkpoint.restore(context)
        if team.total({"start": self.start})["start"] != self.start * team.count:
            raise ZooError(f"{label}: the processes do not find the same checkpoint; give all of them the same folder.")
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        # as for evaluation, which leaves the gradients of several processes to us: they are sums, not means of means
        self.prepared = accelerator.prepare_model(objective, evaluation_mode=team.count > 1)

    def advance(self, step: int) -> None:
        """Move the parameters by one step, and the curves along; refuse a step that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, self.options)
        first = step * self.options.batch
        rows = range(first, first + self.options.batch)
        batches = [self.batch(part) for part in parts(self.team.own(rows), self.options.accumulate) if part]
        values = self.gradient(batches)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.team.add_gradients(parameters)
        norm = self.accelerator.clip_grad_norm_(parameters, self.options.clip)
        figures = values | {"gradient": values["loss"] if norm is None else float(norm)}
        if not math.isfinite(figures["loss"] + figures["gradient"]):
            raise self.divergence(step, rows, figures)
        with whole():
            self.optimizer.step()
            self.optimizer.zero_grad()
            with torch.no_grad():
                for parameter, mask in self.masks:
                    parameter.mul_(mask)
            for name in values:
                if name == "loss" and len(values) == 2:
                    continue  # a sum of one loss is that loss
                self.context.curves.setdefault(name, []).append((step, round(figures[name], 6)))
            self.checkpoint.step = step + 1

    def gradient(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add the gradient of these batches' share in the losses of the step to the parameters; return those losses."""
        own = dict.fromkeys((*self.objective.kinds, TOKENS), 0.0)
        for batch in batches:
            own = {name: count + own[name] for name, count in self.objective.counts(batch).items()}
        whole = self.team.total(own)
        values = torch.zeros(1 + len(self.objective.weights), dtype=torch.float64, device=self.accelerator.device)
        for batch in batches:
            shares = self.prepared(batch, whole)
            self.accelerator.backward(shares["loss"])
            values += torch.stack([share.detach().double() for share in shares.values()])
        return self.team.total(dict(zip(("loss", *self.objective.weights), values.tolist(), strict=True)))

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of some rows, on the device."""
        return batch_of(self.model, self.windows, rows, seed=self.context.seed, device=self.accelerator.device)

    def divergence(self, step: int, rows: Sequence[int], figures: Mapping[str, float]) -> ZooError:
        """What is said of a step that is not finite."""
        size, seed = len(self.windows), self.context.seed
        return divergence(
            self.model,
            self.objective,
            rows,
            figures=figures,
            label=self.label,
            step=step,
            where=lambda row: window_origin(self.windows, shuffled(row, size, seed)),
            batch=lambda row: self.batch([row]),
        )


def rate(step: int, options: TrainingOptions) -> float:
    """The learning rate of a step, the first of which is 0; the fall would reach zero one step after the last."""
    warmup = min(options.warmup, options.steps // 2)
    decay = min(round(options.steps * options.decay), options.steps - warmup)
    half_life = max(1.0, decay / 5)
    total, fall = (options.steps + 1, decay + 1) if decay else (options.steps, 0)
    factor = wsd(step + 1, warmup=warmup, total=total, decay=fall, shape=options.decay_shape, half_life=half_life)
    return options.lr * factor


def matrices(module: nn.Module, anatomy: Anatomy | None = None) -> set[int]:
    """The ids of the weights of linear and convolutional layers, stacked experts and routers among them.

    Tables are left out, also where a head shares one, and so are norms, biases, gains and whatever else has two axes.
    """
    parts = list(module.modules())
    weights: list[torch.Tensor | None]
    weights = [part._parameters.get("weight") for part in parts if features(part) or isinstance(part, _ConvNd)]
    for block in (block for stack in anatomy.stacks.values() for block in stack.blocks) if anatomy else ():
        holders = [resolve(module, path) for path in (*block.projections(), *block.all_routers)]
        weights += [h._parameters.get("weight") if isinstance(h, nn.Module) else h for h in holders]
    tables = {id(part._parameters.get("weight")) for part in parts if is_embedding(part)}
    return {id(weight) for weight in weights if weight is not None and weight.ndim >= 2} - tables


def _groups(parameters: Sequence[nn.Parameter], decayed: set[int], options: TrainingOptions) -> list[dict[str, Any]]:
    """The parameters that weight decay falls on, and the others."""
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def sparse_masks(model: Model) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights that an earlier stage made sparse keep their zeros."""
    sparse = [path for path, traits in model.state().items() if any(trait.kind == "sparse" for trait in traits)]
    parts = [resolve(model.module, path) for path in sparse]  # a linear layer, or the experts' own parameter
    weights = [part.get_parameter("weight") if isinstance(part, nn.Module) else part for part in parts]
    return [(weight, weight.detach() != 0) for weight in weights]


def _to_float32(model: Model) -> dict[str, torch.dtype]:
    """Train in float32: parameters, and the buffers that meet them (Swin's tables of positions, CSATv2's cosines)."""
    dtypes = {}
    for name, tensor in _floats(model.module):
        dtypes[name] = tensor.dtype
        tensor.data = tensor.data.float()
    return dtypes


def _restore_dtype(model: Model, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, tensor in _floats(model.module):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
            tensor.grad = None


def _floats(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, p) for name, p in module.named_parameters() if p.is_floating_point())
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point():
                yield f"{path}.{name}", buffer
