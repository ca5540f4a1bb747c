"""The training loop: deterministic, resumable, under accelerate.

Which windows a step sees follows from (seed, step) alone, the learning rate from the step alone, and dropout is off; so
a run that is killed and resumed from its last checkpoint ends with the same weights as one left alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.anatomy.modules import resolve
from zoo.errors import DataError
from zoo.family.base import window_origin
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.system.signals import whole
from zoo.tensors.batch import Batch
from zoo_compress.train.checkpoint import Checkpoint
from zoo_compress.train.divergence import divergence
from zoo_compress.train.feed import batch_of, shuffled
from zoo_compress.train.options import trainable
from zoo_compress.train.schedules import wsd

if TYPE_CHECKING:
    from zoo_compress.train.options import TrainingOptions


def fit(
    model: Model,
    objective: nn.Module,
    windows: Sequence[Batch],
    *,
    options: TrainingOptions,
    context: Context,
    label: str,
) -> None:
    """Train `model` in place; `objective(batch)` returns a dict of scalars with "loss" among them.

    Raises:
        DataError: there are no windows.
        ZooError: a loss or its gradient is not finite; names it, the step and the samples.
    """
    from accelerate import Accelerator

    if not len(windows):
        raise DataError(f"{label}: the data holds nothing to train on.")
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    kept = _to_float32(model)
    model.module.requires_grad_(False)
    trained = trainable(model, options)
    own = {id(p) for p in model.module.parameters()}
    extra = {f"objective.{n}": p for n, p in objective.named_parameters() if id(p) not in own}
    zeros = sparse_masks(model)
    optimizer = torch.optim.AdamW(
        _groups([*trained.values(), *extra.values()], options), lr=options.lr, betas=(0.9, 0.95)
    )
    run = Checkpoint(context.checkpoint, {**trained, **extra}, optimizer)
    start = run.restore(context)
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    warmup = min(options.warmup, options.steps // 2)
    decay = min(round(options.steps * options.decay), options.steps - warmup)
    with run.kept(context, label=label):
        for step in context.progress.track(range(start, options.steps), total=options.steps - start, label=label):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * wsd(
                    step + 1,
                    warmup=warmup,
                    total=options.steps,
                    decay=decay,
                    shape=options.decay_shape,
                    half_life=max(1.0, decay / 5),
                )
            rows = range(step * options.batch, (step + 1) * options.batch)[
                accelerator.process_index :: accelerator.num_processes
            ]
            batch = batch_of(model, windows, rows, seed=context.seed, device=accelerator.device)
            values = prepared(batch)
            accelerator.backward(values["loss"])
            norm = accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], options.clip)
            figures = _figures({**values, "gradient": values["loss"] if norm is None else norm})
            if not math.isfinite(figures["loss"] + figures["gradient"]):
                raise divergence(
                    model,
                    getattr(objective, "teacher", None),
                    rows,
                    batch,
                    figures=figures,
                    label=label,
                    step=step,
                    where=lambda row: window_origin(windows, shuffled(row, len(windows), context.seed)),
                    losses=None
                    if accelerator.num_processes > 1
                    else lambda row: objective(
                        batch_of(model, windows, [row], seed=context.seed, device=accelerator.device)
                    ),
                )
            with whole():
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    for parameter, mask in zeros:
                        parameter.mul_(mask)
                for name in values:
                    if name == "loss" and len(values) == 2:
                        continue  # a sum of one loss is that loss
                    context.curves.setdefault(name, []).append((step, round(figures[name], 6)))
                run.step = step + 1
            run.save(context, last=step + 1 == options.steps)
    for parameter in model.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _restore_dtype(model, kept)


def _groups(parameters: Sequence[nn.Parameter], options: TrainingOptions) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _figures(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalars as numbers, in one wait for the device."""
    return dict(zip(values, torch.stack([value.detach().double() for value in values.values()]).tolist(), strict=True))


def sparse_masks(model: Model) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights that an earlier stage made sparse keep their zeros."""
    sparse = [path for path, traits in model.state().items() if any(trait.kind == "sparse" for trait in traits)]
    found = [resolve(model.module, path) for path in sparse]  # a linear layer, or the experts' own parameter
    weights = [one.get_parameter("weight") if isinstance(one, nn.Module) else one for one in found]
    return [(weight, weight.detach() != 0) for weight in weights]


def _to_float32(model: Model) -> dict[str, torch.dtype]:
    kept = {name: p.dtype for name, p in model.module.named_parameters() if p.is_floating_point()}
    for p in model.module.parameters():
        if p.is_floating_point():
            p.data = p.data.float()
    return kept


def _restore_dtype(model: Model, kept: dict[str, torch.dtype]) -> None:
    for name, p in model.module.named_parameters():
        if name in kept:
            p.data = p.data.to(kept[name])
            p.grad = None
