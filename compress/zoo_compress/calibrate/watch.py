"""Calibration: run a little data through a model and watch what its modules read and write.

The windows come from the model's family, so every modality calibrates alike. Nothing is kept of a batch but what a
watcher keeps. What the watched modules read and write is looked at here, once for all stages: nan or infinity in it
is refused by the names of module and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pydantic import Field
from torch import nn

from zoo.errors import DataError, ZooError
from zoo.family.base import window_origin
from zoo.model.context import Context, Progress, Silent
from zoo.model.health import cause
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.tensors.batch import Batch, generators, unpadded, without_padding, written
from zoo.tensors.finite import all_finite

# What a module read, what it wrote, and what else it was given by place, such as the experts that a router chose.
Watcher = Callable[..., None]


class CalibrationOptions(CompressorOptions):
    """Options of every stage that looks at data without training on it."""

    data: str = Field("calibration", description="which entry of the recipe's [data] table to calibrate on")
    samples: int = Field(128, ge=1, examples=[4], description="calibration windows, spread evenly over the data")
    length: int = Field(
        256,
        ge=2,
        examples=[64],
        description="tokens in a calibration window, at most the model's context; for models that read text",
    )
    batch: int = Field(8, ge=1, description="calibration windows that run together")
    chat: bool = Field(
        False,
        description="write each record as a chat by the model's chat template: its prompt as the user's message and its text "
        "as the answer, a text alone as the user's message; for models that are used in chats",
    )


class Batches(list[Batch]):
    """Calibration batches; `origins` says of each which samples are in it."""

    origins: list[str]


def batches(model: Model, options: CalibrationOptions, context: Context, *, stage: str) -> Batches:
    """Return the calibration batches: which windows they hold follows from the data and the options alone.

    Raises:
        DataError: the data holds no window, or numbers that are nan or infinite; names the samples.
    """
    data = context.dataset(options.data, stage)
    data = model.family.chats(model, data) if options.chat else data
    windows = model.family.windows(model, data, length=options.length)
    count = min(options.samples, len(windows))
    if not count:
        raise DataError(f"{stage}: {data.name!r} holds nothing to calibrate on.")
    picked = [i * len(windows) // count for i in range(count)]
    groups = [picked[i : i + options.batch] for i in range(0, count, options.batch)]
    made = Batches(joined(model, [windows[i] for i in group], group) for group in groups)
    made.origins = [", ".join(dict.fromkeys(window_origin(windows, i) for i in group)) for group in groups]
    for batch, samples in zip(made, made.origins, strict=True):
        require_finite_batch(batch, samples, stage=stage)
    return made


def require_finite_batch(batch: Batch, samples: str, *, stage: str) -> None:
    """Refuse a batch that holds nan or infinity."""
    for name, tensor in batch.items():
        if not all_finite(tensor):
            raise DataError(f"{stage}: {name} of {_short(samples)} holds nan or infinity; repair the data.")


def joined(model: Model, windows: list[Batch], records: Sequence[int]) -> Batch:
    """Join windows into a batch on the model's device; what is drawn for a window follows from its number among all."""
    batch = model.family.draw(model, model.family.collate(model, windows), generators(0, records))
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def watch(
    model: Model,
    data: Sequence[Batch],
    watchers: Mapping[str, Watcher],
    *,
    until: str = "",
    progress: Progress | None = None,
) -> None:
    """Run `data` through the model, each watcher called whenever its module has run, with the tokens that are no padding.

    Args:
        watchers: by module path; a module that sits at several paths is named once and watched at every call.
        until: a module after which the rest of the model is not run. The head is run only where it is watched.

    Raises:
        ZooError: a watched module reads or writes nan or infinity; names it and the samples.
    """
    sound: list[tuple[str, torch.Tensor]] = []  # of the batch that runs: what was looked at, and whether it is finite
    kept: list[torch.Tensor | None] = [None]  # of the batch that runs: which places are no padding
    hooks = []
    for path, watcher in watchers.items():
        hook = _hook(path, watcher, sound, kept)
        hooks.append(model.module.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    if until:
        hooks.append(model.module.get_submodule(until).register_forward_hook(_stop))
    whole = until or model.anatomy.head in watchers
    run = model.family.forward if whole else model.family.forward_body
    try:
        for number, batch in enumerate((progress or Silent()).track(data, total=len(data), label="calibration")):
            sound.clear()
            kept[0] = unpadded(batch)
            with torch.no_grad(), suppress(_Enough):
                run(model, batch)
            require_sound(model, batch, sound, samples_of(data, number))
    finally:
        for handle in hooks:
            handle.remove()


def samples_of(data: Sequence[Batch], number: int) -> str:
    """Which samples are in a batch."""
    origins = getattr(data, "origins", [])
    return origins[number] if origins else f"calibration batch {number}"


def require_sound(model: Model, batch: Batch, sound: Sequence[tuple[str, torch.Tensor]], samples: str) -> None:
    """Refuse what a batch led to, in one wait for the device; `sound` says what was looked at, and whether it was finite."""
    if not sound or bool(torch.stack([fine for _, fine in sound]).all()):
        return
    what = next(what for what, fine in sound if not fine)
    raise ZooError(f"On {_short(samples)}, {what} nan or infinity: {cause(model, batch)}.")


def _short(samples: str) -> str:
    return samples if len(samples) <= 200 else f"{samples[:200]}..."


def _hook(
    path: str, watcher: Watcher, sound: list[tuple[str, torch.Tensor]], kept: list[torch.Tensor | None]
) -> Callable[..., None]:
    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, wrote = input_of(args, kwargs), written(output)
        read, wrote = (without_padding(tensor, kept[0]) for tensor in (read, wrote))
        sound.extend((f"{path} {verb}", finite_yet(tensor)) for verb, tensor in (("reads", read), ("gives", wrote)))
        watcher(read, wrote, *args[1:])

    return call


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The tensor that a module reads first."""
    read: torch.Tensor = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
    return read


def finite_yet(tensor: torch.Tensor) -> torch.Tensor:
    """Whether all entries are finite, as a tensor that nobody waits for yet."""
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()


class _Enough(Exception):
    """Everything that was to be seen has been seen."""


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Enough
