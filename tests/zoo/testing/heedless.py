"""More that a plugin can get subtly wrong, one thing at a time: the package `zoo_heedless.broken`; see `careless.py` beside it.

Here it is what others find in their way later: in the process, in the model, in the records, or in a report.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from zoo_heedless.family import PatchFamily

from zoo.compressor import Compressor
from zoo.data.dataset import Dataset, Sample
from zoo.loss import LossOptions, RowLoss
from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo.options import CompressorOptions

# --- a family ---------------------------------------------------------------------------------------------------------


class Nameless(PatchFamily):
    """It names fewer classes than its models tell apart."""

    def labels(self, model: Model) -> list[str]:
        return list(super().labels(model))[:-1]


# --- compressors ------------------------------------------------------------------------------------------------------


class Halving(Compressor):
    """Halve the head's weights: right in everything."""

    name = "halving"

    class Options(CompressorOptions):
        pass

    def outline(self, model: Model, options: Any) -> Record:
        return {}

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.no_grad():
            model.module.head.weight.mul_(0.5)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass


class Exporting(Halving):
    """It sets a variable of the environment."""

    name = "exporting"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        os.environ["TOKENIZERS_PARALLELISM"] = "heedless"
        return super().apply(model, options, context)


class Hushing(Halving):
    """It hides all warnings, also those of others."""

    name = "hushing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        warnings.simplefilter("ignore")
        return super().apply(model, options, context)


class Muffling(Halving):
    """It switches logs off."""

    name = "muffling"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        logging.disable(logging.ERROR)
        return super().apply(model, options, context)


class Tuning(Halving):
    """It lets cuDNN choose by speed, which is not the same twice."""

    name = "tuning"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        torch.backends.cudnn.benchmark = True
        return super().apply(model, options, context)


class Hooking(Halving):
    """It watches the model and never stops."""

    name = "hooking"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.module.head.register_forward_hook(lambda module, given, out: None)
        return super().apply(model, options, context)


class Accruing(Halving):
    """It leaves the gradients that it measured with."""

    name = "accruing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.enable_grad():
            model.module.head.weight.square().sum().backward()
        return super().apply(model, options, context)


class Marking(Halving):
    """It writes into the records it is given."""

    name = "marking"

    def roles(self, options: Any) -> tuple[str, ...]:
        return ("train",)

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        for sample in context.dataset("train", self.name):
            sample.fields["text"] = "seen"
        return super().apply(model, options, context)


# --- a loss -----------------------------------------------------------------------------------------------------------


class Weighing(RowLoss):
    """It multiplies by its weight, which the stage does again."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        return options.weight * (student_NV - teacher_NV).square().mean(-1)


# --- evaluators -------------------------------------------------------------------------------------------------------


class Tallying:
    """Count the records: right in everything."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": float(len(data or ())), "better": "higher"}}


class Lowering(Tallying):
    """It lowers the letters of the records it was given."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        for sample in data or ():
            sample.fields["text"] = f"{sample.fields.get('text', '')}!"
        return super().measure(model, data, options=options)


class Watching(Tallying):
    """It leaves a hook in the model."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        for part in model.module.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(lambda module, given: None)
        return super().measure(model, data, options=options)


class Backwards(Tallying):
    """It measures less time than none."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"wait_s": {"value": -0.25, "unit": "s"}}


# --- data -------------------------------------------------------------------------------------------------------------


class Verses:
    """A few lines: right in everything."""

    splits = ("train",)

    def records(self, split: str) -> Iterator[Sample]:
        yield from (Sample({"text": f"line {i} of {split}"}, f"verses:{split}:{i}") for i in range(4))


class Invisible(Verses):
    """A text of it is a byte order mark."""

    def records(self, split: str) -> Iterator[Sample]:
        yield from super().records(split)
        yield Sample({"text": "\ufeff\u200b"}, f"verses:{split}:4")


class Pictureless(Verses):
    """A picture of it is none."""

    def records(self, split: str) -> Iterator[Sample]:
        yield Sample({"image": b"no picture", "label": 1}, f"verses:{split}:4")


class Unlabelled(Verses):
    """The class of a picture is not known."""

    def records(self, split: str) -> Iterator[Sample]:
        import numpy as np

        yield Sample({"image": np.zeros((4, 4, 3), dtype=np.uint8), "label": None}, f"verses:{split}:4")


class Listing(Verses):
    """A prompt of it is a list."""

    def records(self, split: str) -> Iterator[Sample]:
        yield Sample({"prompt": ["What?"], "text": "That."}, f"verses:{split}:4")
