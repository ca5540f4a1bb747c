"""The training loop: deterministic, resumable, under accelerate.

Which windows a step sees follows from (seed, step) alone, the learning rate from the step alone, and dropout is off; so
a run that is killed and resumed from its last checkpoint ends with the same weights as one left alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import nn

from zoo.anatomy.modules import resolve
from zoo.errors import DataError, UnknownName, nearest
from zoo.family.base import window_origin
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.system.signals import whole
from zoo.system.writing import replace_file
from zoo.tensors.batch import Batch
from zoo.tensors.safetensors import pieces_of
from zoo_compress.train.divergence import divergence
from zoo_compress.train.schedule import Decay, wsd

CHECKPOINT_SECONDS = 20.0
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


class TrainingOptions(CompressorOptions):
    """Options that every training stage shares."""

    loss: tuple[dict[str, Any], ...] = Field(
        (), description='losses, each {use = "kl", weight = 1.0, ...}; empty: what models of this kind are trained on'
    )
    only: tuple[str, ...] = Field(
        (), description='train these modules alone, by path, such as ["projector"]; empty: all'
    )
    steps: int = Field(200, ge=1, examples=[2], description="optimizer steps")
    batch: int = Field(8, ge=1, examples=[2], description="windows in a batch, over all processes")
    length: int = Field(256, ge=2, examples=[64], description="tokens in a window, for models that read text")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup: int = Field(20, ge=0, examples=[1], description="steps of linear warm-up, at most half of all")
    decay: float = Field(0.3, ge=0, le=1, description="share of the steps over which the rate falls to zero")
    decay_shape: Decay = Field("1-sqrt", description="how the rate falls")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay on matrices")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


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
    run = _Checkpoint(context.checkpoint, {**trained, **extra}, optimizer)
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
            batch = _batch(model, windows, rows, seed=context.seed, device=accelerator.device)
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
                    where=lambda row: window_origin(windows, _shuffled(row, len(windows), context.seed)),
                    losses=None
                    if accelerator.num_processes > 1
                    else lambda row: objective(
                        _batch(model, windows, [row], seed=context.seed, device=accelerator.device)
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


def require_parts(model: Model, options: TrainingOptions, *, stage: str) -> None:
    """Refuse `only` where it names a module that the model does not have."""
    paths = {path for path, _ in model.module.named_modules()}
    for name in options.only:
        if name not in paths:
            top = [path for path, _ in model.module.named_children()]
            raise UnknownName(
                f"{stage}: the model has no module {name!r} to train.{nearest(name, paths)} Its parts: {', '.join(top)}."
            )


def trainable(model: Model, options: TrainingOptions) -> dict[str, nn.Parameter]:
    """The parameters the stage may change, by name, each marked as such."""
    parts = [model.module.get_submodule(name) for name in options.only] or [model.module]
    wanted = {id(p) for part in parts for p in part.parameters() if p.is_floating_point()}
    trained = {name: p for name, p in model.module.named_parameters() if id(p) in wanted}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def _groups(parameters: Sequence[nn.Parameter], options: TrainingOptions) -> list[dict[str, Any]]:
    """Weight decay on matrices only."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _batch(model: Model, windows: Sequence[Batch], rows: Sequence[int], *, seed: int, device: torch.device) -> Batch:
    """Join the windows that fall to some rows and draw their noise."""
    batch = model.family.collate(model, [windows[_shuffled(row, len(windows), seed)] for row in rows])
    generator = torch.Generator().manual_seed((seed * 1_000_003 + rows[0]) % 2**63 if rows else 0)
    return {name: tensor.to(device) for name, tensor in model.family.draw(model, batch, generator).items()}


def _figures(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalars as numbers, in one wait for the device."""
    return dict(zip(values, torch.stack([value.detach().double() for value in values.values()]).tolist(), strict=True))


def _shuffled(row: int, size: int, seed: int) -> int:
    """Position of the `row`-th draw: every window once an epoch, in an order that follows from seed and epoch."""
    epoch, position = divmod(row, size)
    if (size, seed, epoch) not in _orders:
        _orders.clear()
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        _orders[(size, seed, epoch)] = torch.randperm(size, generator=generator)
    return int(_orders[(size, seed, epoch)][position])


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


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


class _Checkpoint:
    """Weights, optimizer moments and curves in one safetensors file, replaced whole every few seconds."""

    def __init__(
        self, folder: Path | None, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = folder / "training.safetensors" if folder else None
        self.parameters, self.optimizer = parameters, optimizer
        self.time = time.monotonic()  # of the last one
        self.step = 0  # steps that are done

    @contextmanager
    def kept(self, context: Context, *, label: str) -> Iterator[None]:
        """Save the steps that are done when a signal ends what runs inside."""
        try:
            yield
        except KeyboardInterrupt:
            if self.path and self.step:
                self.write(context)
                context.progress.say(f"{label}: stopped after step {self.step}, which is saved")
            raise

    def save(self, context: Context, *, last: bool) -> None:
        """Save now and then; after the last step the model itself is saved."""
        if self.path and not last and time.monotonic() - self.time >= CHECKPOINT_SECONDS:
            self.write(context)

    def write(self, context: Context) -> None:
        """Replace the checkpoint by one of the steps that are done."""
        assert self.path is not None
        tensors = {f"weight:{name}": p.detach().contiguous() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            state = self.optimizer.state[p]
            tensors |= {f"{key}:{name}": state[key].contiguous() for key in MOMENTS if key in state}
        about = {"step": str(self.step), "curves": json.dumps(context.curves)}
        replace_file(self.path, pieces_of(tensors, about), size=sum(tensor.nbytes for tensor in tensors.values()))
        self.time = time.monotonic()

    def restore(self, context: Context) -> int:
        """Load the last checkpoint, if there is one; return the step to go on from."""
        if self.path is None or not self.path.exists():
            return 0
        try:
            step, curves, tensors = self._read(self.path)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            context.progress.say(f"{self.path} is damaged ({error}); this stage starts over")
            return 0
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"weight:{name}"])
                if f"exp_avg:{name}" in tensors:
                    moments = {key: tensors[f"{key}:{name}"].clone() for key in MOMENTS}
                    self.optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
        context.curves.update(curves)
        context.progress.say(f"going on from step {step}")
        self.step = step
        return step

    def _read(self, path: Path) -> tuple[int, dict[str, list[tuple[int, float]]], dict[str, torch.Tensor]]:
        """The steps done, the curves and the tensors of a checkpoint, all of which fit."""
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, p in self.parameters.items():
            if tensors[f"weight:{name}"].shape != p.shape:
                raise ValueError(f"{name} has another shape")
        curves = {name: [(int(x), float(y)) for x, y in curve] for name, curve in json.loads(about["curves"]).items()}
        return int(about["step"]), curves, tensors
