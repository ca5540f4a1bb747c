"""Checkpoints of training: weights, moments and curves in one file, from which a killed stage goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from zoo.model.context import Context
from zoo.system.writing import replace_file
from zoo.tensors.safetensors import pieces_of

CHECKPOINT_SECONDS = 20.0
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


class Checkpoint:
    """Weights, optimizer moments and curves in one safetensors file, replaced whole every few seconds."""

    def __init__(
        self, folder: Path | None, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = folder / "training.safetensors" if folder else None
        self.parameters, self.optimizer = parameters, optimizer
        self.time = time.monotonic()  # of the last one
        self.step = 0  # steps that are done

    @contextmanager
    def saved_on_interrupt(self, context: Context, *, label: str) -> Iterator[None]:
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
