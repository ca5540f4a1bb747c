"""What a training step holds at most, told from shapes: the step itself is run dry, with data like that it will see."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.model.context import Context
from zoo.model.model import Model
from zoo_compress.dryrun import DryRun, told_from_shapes, windows_of
from zoo_compress.losses.resolve import WeightedFeature, WeightedRow
from zoo_compress.train.loop import sparse_masks
from zoo_compress.train.objective import Objective
from zoo_compress.train.options import TrainingOptions, trainable


def training_bytes(
    model: Model,
    teacher: Model | None,
    rows: Sequence[WeightedRow],
    features: Sequence[WeightedFeature] = (),
    *,
    data: str,
    options: TrainingOptions,
    context: Context,
) -> int:
    """Memory of training on top of the model's weights: the teacher, fp32 copies, gradients, moments, activations, data.

    Args:
        model, teacher: skeletons will do.
        data: the role whose data is trained on.

    Raises:
        ZooError: the step depends on values, so that shapes do not suffice.
    """
    run = DryRun()
    with told_from_shapes(model, "training"):
        student = run.shadow(model, dtype=torch.float32)
        taught = run.shadow(teacher) if teacher else None
        part = -(-options.batch // options.accumulate)
        windows = windows_of(model, context.data.get(data), batch=part, length=options.length)
        batches = [run.batch(windows.batch) for _ in range(options.accumulate)]
        with run:
            student.module.requires_grad_(False)
            masks = sparse_masks(student)
            objective = Objective(student, taught, rows, features, seed=context.seed)
            trained = [*trainable(student, options).values(), *objective.features.parameters()]
            if taught:
                taught.module.requires_grad_(False)
            moments = [torch.empty_like(p) for p in trained for _ in range(2)]
            for batch in batches[:2]:  # the second finds the gradients of the first
                objective(batch)["loss"].backward()
            largest = max(trained, key=torch.numel)
            # AdamW's root of the second moment, and over its bias
            update = [torch.empty_like(largest) for _ in range(2)]
            del moments, update, masks
    return run.peak + windows.kept_bytes - sum(tensor.nbytes for tensor in model.tensors().values())
