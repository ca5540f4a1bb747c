"""Calibration: run a little data through a model and watch what its modules read and write.

The windows come from the model's family, so every modality calibrates alike. Nothing is kept of a batch but what a
watcher keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from zoo.compressor import CompressorOptions, Context
from zoo.family import Batch
from zoo.model import Model

Watcher = Callable[[torch.Tensor, torch.Tensor], None]  # what a module read, and what it wrote


class CalibrationOptions(CompressorOptions):
    """Options of every stage that looks at data without training on it."""

    data: str = Field("calibration", description="which entry of the recipe's [data] table to calibrate on")
    samples: int = Field(128, ge=1, description="calibration windows, spread evenly over the data")
    length: int = Field(256, ge=2, description="tokens in a calibration window, at most the model's context; for models that read text")
    batch: int = Field(8, ge=1, description="calibration windows that run together")


def batches(model: Model, options: CalibrationOptions, context: Context, *, stage: str) -> list[Batch]:
    """Return the calibration batches: which windows they hold follows from the data and the options alone."""
    windows = model.family.windows(model, context.dataset(options.data, stage), length=options.length)
    count = min(options.samples, len(windows))
    picked = [windows[i * len(windows) // count] for i in range(count)]
    groups = [picked[i : i + options.batch] for i in range(0, count, options.batch)]
    return [joined(model, group, seed=number) for number, group in enumerate(groups)]


def joined(model: Model, windows: list[Batch], *, seed: int) -> Batch:
    """Join windows into a batch on the model's device, with whatever is drawn for it drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    batch = model.family.draw(model, model.family.collate(model, windows), generator)
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def watch(model: Model, data: list[Batch], watchers: Mapping[str, Watcher], *, until: str = "") -> None:
    """Run `data` through the model, each watcher called whenever its module has run.

    Args:
        watchers: by module path; a module that sits at several paths is named once and watched at every call.
        until: a module after which the rest of the model is not run.
    """
    hooks = []
    for path, watcher in watchers.items():
        hook = _hook(watcher)
        hooks.append(model.module.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    if until:
        hooks.append(model.module.get_submodule(until).register_forward_hook(_stop))
    try:
        with torch.no_grad():
            for batch in data:
                try:
                    model.family.forward(model, batch)
                except _Enough:
                    continue
    finally:
        for handle in hooks:
            handle.remove()


def _hook(watcher: Watcher) -> Callable[..., None]:
    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
        watcher(read, output[0] if isinstance(output, tuple) else output)

    return call


class _Enough(Exception):
    """Everything that was to be seen has been seen."""


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Enough
