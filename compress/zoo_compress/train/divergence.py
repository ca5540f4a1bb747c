"""What is said when training meets nan or infinity: which loss, at which step, on which samples, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from zoo.errors import ZooError
from zoo.model.health import blame
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo.tensors.finite import all_finite
from zoo_compress.train.objective import Objective

SHOWN = 4  # samples that are named
LOOK = "lower `lr`, or look at the data"


def divergence(
    model: Model,
    objective: Objective,
    rows: Sequence[int],
    *,
    figures: Mapping[str, float],
    label: str,
    step: int,
    where: Callable[[int], str],
    batch: Callable[[int], Batch],
) -> ZooError:
    """Describe a step whose loss or gradient is not finite.

    Args:
        figures: "loss", every loss under its own name, and "gradient", the norm.
        where: says where a row of the step is from.
        batch: gives one row alone.
    """
    if math.isfinite(figures["loss"]):
        what = f"the gradient is {figures['gradient']}, though the loss is {figures['loss']:.4g}"
    else:
        parts = [f"{name} {value:.4g}" for name, value in figures.items() if name not in ("loss", "gradient")]
        what = f"the loss is {figures['loss']} ({', '.join(parts)})"
    guilty = [row for row in rows if not _sound(objective, batch(row))] or rows
    origins = list(dict.fromkeys(map(where, guilty)))
    more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    reasons = (_why(model, objective.teacher, batch(row)) for row in guilty[:SHOWN])
    why = next(filter(None, reasons), LOOK)
    return ZooError(f"{label}: {what} at step {step}, on {', '.join(origins[:SHOWN])}{more}; {why}.")


def _sound(objective: Objective, batch: Batch) -> bool:
    """Whether the losses of a batch are finite."""
    with torch.no_grad():
        return all(map(all_finite, objective(batch).values()))


def _why(model: Model, teacher: Model | None, batch: Batch) -> str:
    """Which tensor or layer is to blame for what a batch gave, and what helps; "" where none is."""
    bad = next((name for name, tensor in batch.items() if not all_finite(tensor)), "")
    if bad:
        return f"{bad} of the batch holds nan or infinity: look at the data"
    if culprit := blame(model, batch):
        return f"{culprit}: lower `lr`, or look at the data and at the weights it began with"
    if teacher is not None and (culprit := blame(teacher, batch)):
        return f"of the teacher {teacher.spec.name}, {culprit}: choose another"
    return ""
