"""What a plugin can get wrong, one thing at a time: the package `zoo_broken.broken` of a plugin that is made for the tests.

Everything else about each of them is right, so that a check which fails is the one that is named for what is wrong.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import nn
from zoo_compress.losses.rows import ForwardKL

from zoo.compressor import Compressor
from zoo.data.dataset import Dataset, Sample
from zoo.errors import Refused
from zoo.loss import LossOptions, RowLoss
from zoo.model.context import Context
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo.options import CompressorOptions

# --- compressors ------------------------------------------------------------------------------------------------------


class Halving(Compressor):
    """Halve the head's weights: right in everything."""

    class Options(CompressorOptions):
        by: float = Field(0.5, description="factor of the weights")

    def outline(self, model: Model, options: Any) -> Record:
        return {}

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.no_grad():
            model.module.head.weight.mul_(options.by)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass


class Fine(Halving):
    """Nothing is wrong with this one."""

    name = "fine"


class Lying(Halving):
    """Its outline says nothing of what it does."""

    name = "lying"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        self.rebuild(model, {"cut": True})
        return {"cut": True}

    def rebuild(self, model: Model, record: Record) -> None:
        if record:
            model.module.head = nn.utils.skip_init(nn.Linear, 64, 5, device=model.device)
            with torch.no_grad():
                model.module.head.weight.fill_(1), model.module.head.bias.zero_()


class Drawing(Halving):
    """It draws from the global random state."""

    name = "drawing"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.no_grad():
            model.module.head.weight.add_(torch.randn(model.module.head.weight.shape))
        return {}


class Unseeded(Halving):
    """It draws from a generator that no seed was given to."""

    name = "unseeded"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        with torch.no_grad():
            model.module.head.weight.add_(random.SystemRandom().random())
        return {}


class Scale(nn.Module):
    """Multiplies by a number that is no tensor, so that nothing of it is saved."""

    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.by


class Forgetting(Halving):
    """What it rebuilds computes something else than what it left."""

    name = "forgetting"

    def outline(self, model: Model, options: Any) -> Record:
        return {"scaled": True}

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.module.head = Scale(model.module.head, 2.0)
        return {"scaled": True}

    def rebuild(self, model: Model, record: Record) -> None:
        model.module.head = Scale(model.module.head, 1.0)


class Loud(Halving):
    """It prints."""

    name = "loud"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        print("halving now")
        return super().apply(model, options, context)


class Leaving(Halving):
    """It ends the process."""

    name = "leaving"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        sys.exit(3)


class Silent(Halving):
    """An option of it has no description."""

    name = "silent"

    class Options(CompressorOptions):
        by: float = 0.5


class Bare(Halving):
    """An option of it has neither default nor example."""

    name = "bare"

    class Options(CompressorOptions):
        by: float = Field(description="factor of the weights")


class Late(Halving):
    """It refuses only when it has begun."""

    name = "late"

    def check(self, model: Model, state: State, options: Any) -> None:
        if model.device.type != "meta":
            model.module.head.weight.data.zero_()
        raise Refused("late takes no model at all.")


class Undocumented(Halving):
    name = "undocumented"


# --- losses -----------------------------------------------------------------------------------------------------------


class Detached(ForwardKL):
    """It has no gradient."""

    def __call__(self, *args: Any) -> torch.Tensor:
        return super().__call__(*args).detach()


class Astray(RowLoss):
    """It is least somewhere else than at the teacher."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        return (student_NV - teacher_NV - 3).square().mean(-1)


class Mixing(RowLoss):
    """What a row gives depends on the others."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        each = (student_NV - teacher_NV).square().mean(-1)
        return each * each.detach().mean()


class Undefined(RowLoss):
    """It is not finite."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        return (student_NV - teacher_NV).square().mean(-1) / 0


class Averaged(RowLoss):
    """It gives one number, though it is not said to be `whole`."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        return (student_NV - teacher_NV).square().mean()


class Dicing(RowLoss):
    """It draws from the global random state."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        torch.rand(1)
        return (student_NV - teacher_NV).square().mean(-1)


# --- evaluators -------------------------------------------------------------------------------------------------------


class Measuring:
    """Count the records: right in everything."""

    Options = CompressorOptions

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": float(len(data or ())), "better": "higher"}}


class NotANumber(Measuring):
    """Its figure is nan."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": float("nan"), "better": "higher"}}


class Outside(Measuring):
    """Its figure lies outside its interval."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": 3.0, "low": 4.0, "high": 5.0}}


class Guessing(Measuring):
    """Its figure is another every time."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        return {"records": {"value": random.SystemRandom().random()}}


class Meddling(Measuring):
    """It changes the model."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        with torch.no_grad():
            model.module.head.bias += 1
        return super().measure(model, data, options=options)


class Choosy(Measuring):
    """It measures nothing."""

    def measure(self, model: Model, data: Dataset | None, *, options: Any) -> dict[str, Any]:
        raise Refused("choosy measures nothing.")


# --- data -------------------------------------------------------------------------------------------------------------


class Empty:
    """It holds nothing."""

    splits = ("train",)

    def records(self, split: str) -> Iterator[Sample]:
        yield from ()


class Anonymous:
    """Its records do not say where they are from."""

    splits = ("train",)

    def records(self, split: str) -> Iterator[Sample]:
        yield from (Sample({"text": f"line {i}"}, "somewhere") for i in range(4))


class Unordered:
    """It follows the order of a set."""

    splits = ("train",)

    def records(self, split: str) -> Iterator[Sample]:
        yield from (Sample({"text": word}, f"unordered:{word}") for word in {f"word {i}" for i in range(32)})


class Shuffling:
    """It draws from the global random state."""

    splits = ("train",)

    def records(self, split: str) -> Iterator[Sample]:
        random.random()
        yield from (Sample({"text": f"line {i}"}, f"shuffling:{i}") for i in range(4))


# --- commands ---------------------------------------------------------------------------------------------------------


def wordless(name: str = "x") -> None:
    print(name)
