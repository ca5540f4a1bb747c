"""The stage that trains a model on data alone: from random weights, or on from where it is."""

from __future__ import annotations

from pydantic import Field

from zoo.compressor import Compressor
from zoo.errors import Refused
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train.loop import fit
from zoo_compress.train.objective import Objective
from zoo_compress.train.options import TrainingOptions, check_training


class Train(Compressor):
    """Train on data alone (AdamW, warmup-stable-decay: MiniCPM, 2404.06395, section 4).

    A language model learns the next token, a masked one those that were hidden, an image model what its family says.
    Weights that an earlier stage made sparse keep their zeros; packed weights stay as they are.
    """

    name = "train"
    # 2: text begins with <bos>, every step trains, matrices alone decay; 3: all experts do; 4: draws of their own for each row
    version = 4
    trains = True
    structural = False

    class Options(TrainingOptions):
        data: str = Field("train", description="which entry of the recipe's [data] table to train on")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        rows, features = resolve_losses(options.loss or task_of(model).losses(model))
        if not rows and not features:
            raise Refused(
                f"{self.name} has no loss of its own for {task_of(model).name} models, since no data says what is right: "
                'use = "distill" learns from a teacher\'s vectors.'
            )
        taught = [name for name, loss, _ in rows if loss.needs_teacher] + [name for name, _, _ in features]
        if taught:
            raise Refused(f'{self.name} has no teacher for the loss {taught[0]!r}; use = "distill" has one.')
        check_training(model, state, options, rows, stage=self.name, does="updates")

    def outline(self, model: Model, options: Options) -> Record:
        return {}

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        from zoo_compress.train.footprint import training_bytes

        rows, _ = resolve_losses(options.loss or task_of(model).losses(model))
        return training_bytes(model, None, rows, data=options.data, options=options, context=context)

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        windows = model.family.windows(model, context.dataset(options.data, self.name), length=options.length)
        rows, _ = resolve_losses(options.loss or task_of(model).losses(model))
        fit(model, Objective(model, None, rows), windows, options=options, context=context, label=self.name)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass
