"""What a plugin can get subtly wrong, one thing at a time: the package `zoo_careless.broken` of a plugin made for the tests.

Each works in the run it was tried in; what is wrong shows later, or elsewhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from zoo.compressor import Compressor
from zoo.data.dataset import Dataset, Sample
from zoo.loss import LossOptions, RowLoss
from zoo.model.context import Context
from zoo.model.lineage import Record, Trait
from zoo.model.model import Model
from zoo.options import CompressorOptions

# --- compressors ------------------------------------------------------------------------------------------------------


class Scaling(Compressor):
    """Halve the head's weights: right in everything."""

    name = "scaling"

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


class Sparing(Scaling):
    """It makes weights sparse and does not say so."""

    name = "sparing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.no_grad():
            model.module.head.weight[:, ::2] = 0
        return {}


class Misleading(Scaling):
    """It gives a trait to what is not there."""

    name = "misleading"

    def traits(self, record: Record) -> dict[str, Trait]:
        return {"tail": Trait("sparse")}


class Reading(Scaling):
    """It reads data of a role that it does not name."""

    name = "reading"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        len(context.dataset("calibration", self.name))
        return super().apply(model, options, context)


class Remembering(Scaling):
    """It keeps in itself what it did."""

    name = "remembering"
    seen: ClassVar[list[str]] = []

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        self.seen.append(model.spec.name)
        return super().apply(model, options, context)


class Awaking(Scaling):
    """It leaves the model in train mode."""

    name = "awaking"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.module.train()
        return super().apply(model, options, context)


class Freezing(Scaling):
    """It leaves the model without gradients."""

    name = "freezing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.module.requires_grad_(False)
        return super().apply(model, options, context)


class Settling(Scaling):
    """It sets torch's default dtype."""

    name = "settling"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        torch.set_default_dtype(torch.float64)
        return super().apply(model, options, context)


class Ungraded(Scaling):
    """It switches gradients off for everybody."""

    name = "ungraded"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        torch.set_grad_enabled(False)
        return super().apply(model, options, context)


class Roaming(Scaling):
    """It changes the working directory."""

    name = "roaming"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        os.chdir("/")
        return super().apply(model, options, context)


class Patching(Scaling):
    """It puts a function of its own in place of torch's."""

    name = "patching"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        plain = nn.functional.gelu
        nn.functional.gelu = lambda *args, **options: plain(*args, **options)
        return super().apply(model, options, context)


class Overriding(Scaling):
    """It puts a method of its own into torch's class."""

    name = "overriding"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        nn.Linear.half = lambda self: self
        return super().apply(model, options, context)


class Deaf(Scaling):
    """It takes Ctrl-C for itself."""

    name = "deaf"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return super().apply(model, options, context)


class Negative(Scaling):
    """It predicts less memory than none."""

    name = "negative"

    def working_bytes(self, model: Model, options: Any, context: Context) -> int:
        return -model.bytes


class Hashing(Scaling):
    """What it does follows the order of a set."""

    name = "hashing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        words = {f"word {i}" for i in range(4096)}
        with torch.no_grad():
            model.module.head.weight.mul_(1 + len(next(iter(words))) + int(next(iter(words))[5:]))
        return {}


class Using(Scaling):
    """An option of it has the name by which recipes name the stage."""

    name = "using"

    class Options(CompressorOptions):
        use: int = 3


# --- losses -----------------------------------------------------------------------------------------------------------


class Counting(RowLoss):
    """It keeps in itself how often it was called."""

    calls = 0

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        self.calls += 1
        return (student_NV - teacher_NV).square().mean(-1)


# --- evaluators -------------------------------------------------------------------------------------------------------


class Plain:
    """Count the records, without options: right in everything."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": float(len(data or ())), "better": "higher"}}


class Beyond(Plain):
    """It finds more than all."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"right": {"value": 137.5, "unit": "%", "better": "higher"}}


class Below(Plain):
    """It finds less than nothing."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"right": {"value": 2.0, "low": -3.0, "high": 7.0, "unit": "%", "better": "higher"}}


class Hundredfold(Plain):
    """It gives a share in percent and does not say so."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"top_5_accuracy": {"value": 37.5, "better": "higher"}}


class Hundredth(Plain):
    """It gives a share and calls it percent."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"right": {"value": 3 / len(data or ()), "unit": "%", "better": "higher"}}


class Rousing(Plain):
    """It leaves the model in train mode."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        model.module.train()
        return super().measure(model, data, options=options)


class Sorting(Plain):
    """Its figure follows the order of a set."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"word": {"value": float(next(iter({f"word {i}" for i in range(4096)}))[5:])}}


# --- data -------------------------------------------------------------------------------------------------------------


class Lines:
    """A few lines in two splits: right in everything."""

    splits = ("train", "test")

    def records(self, split: str) -> Iterator[Sample]:
        yield from (Sample({"text": f"line {i} of {split}"}, f"lines:{split}:{i}") for i in range(4))


class Leaking(Lines):
    """Its test data was learnt from."""

    def records(self, split: str) -> Iterator[Sample]:
        yield from (Sample({"text": f"line {i}"}, f"lines:{split}:{i}") for i in range(4))


class Blank(Lines):
    """A text of it is empty."""

    def records(self, split: str) -> Iterator[Sample]:
        yield from super().records(split)
        yield Sample({"text": " \n"}, f"lines:{split}:4")


class Wearing(Lines):
    """It holds something else from the third reading on."""

    def __init__(self) -> None:
        self.readings = 0

    def records(self, split: str) -> Iterator[Sample]:
        self.readings += 1
        yield from (Sample({"text": f"{self.readings > 4} {i} {split}"}, f"lines:{split}:{i}") for i in range(4))


class Moving(Lines):
    """Its records are from another place at every reading."""

    def __init__(self) -> None:
        self.readings = 0

    def records(self, split: str) -> Iterator[Sample]:
        self.readings += 1
        yield from (Sample({"text": f"{split} {i}"}, f"lines:{split}:{i}.{self.readings}") for i in range(4))


class Lazy(Lines):
    """It reads once and keeps what it read, which is no fault."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Sample]] = {}

    def records(self, split: str) -> Any:
        if split not in self.kept:
            self.kept[split] = list(super().records(split))
        return self.kept[split]
