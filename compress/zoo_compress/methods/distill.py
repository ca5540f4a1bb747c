"""The distillation stage: train the compressed model to follow a teacher."""

from __future__ import annotations

from pydantic import Field

from zoo.compressor import Compressor
from zoo.errors import Refused, RequestError
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.health import require_finite
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train.loop import fit
from zoo_compress.train.objective import Objective
from zoo_compress.train.options import TrainingOptions, check_training


class Distill(Compressor):
    """Train on a teacher's predictions, and where asked on its hidden states (Hinton et al. 2015, 1503.02531).

    The loss is a weighted sum of registered losses. For language models: "kl" (forward KL at a temperature, over the
    full vocabulary: what Gemma 2 trains with, 2408.00118, section 3, and Minitron recovers pruned models with,
    2407.14679, section 4), "cross-entropy" (the data), "hidden" (block outputs through a layer map). Logits are made a
    chunk of rows at a time, so two (tokens, vocabulary) tensors never exist in full. Where one tokenizer's tables are
    padded to different lengths, both models' logits are cut to the shorter table before the softmax.
    """

    name = "distill"
    # 2: text begins with <bos>, every step trains, matrices alone decay; 3: all experts do; 4: draws of their own for each row
    version = 4
    trains = True
    structural = False

    class Options(TrainingOptions):
        teacher: str = Field(
            "original", description='a model name or path; "original" is the recipe\'s model before any stage'
        )
        data: str = Field("train", description="which entry of the recipe's [data] table to train on")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        rows, features = resolve_losses(options.loss or task_of(model).distillation(model))
        check_training(model, state, options, rows, stage=self.name, does="trains")
        for _, _, own in features:
            model.anatomy.stack(own.target)

    def check_teacher(self, model: Model, teacher: Model) -> None:
        """Refuse a teacher whose predictions are not of the student's kind."""
        if reason := model.family.comparable(model, teacher):
            raise Refused(reason)

    def outline(self, model: Model, options: Options) -> Record:
        return {}

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        from zoo_compress.train.footprint import training_bytes

        teacher = context.load(options.teacher) if context.load else None
        rows, features = resolve_losses(options.loss or task_of(model).distillation(model))
        return training_bytes(model, teacher, rows, features, data=options.data, options=options, context=context)

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        if context.load is None:
            raise RequestError(
                f"{self.name} needs its teacher: pass Context(load=...), a function from {options.teacher!r} to a model."
            )
        teacher = context.load(options.teacher)
        self.check_teacher(model, teacher)
        require_finite(teacher, what=f"{self.name}: the teacher {teacher.spec.name}")
        teacher.module.to(model.device)
        rows, features = resolve_losses(options.loss or task_of(model).distillation(model))
        windows = model.family.windows(model, context.dataset(options.data, self.name), length=options.length)
        objective = Objective(model, teacher, rows, features, seed=context.seed)
        fit(model, objective, windows, options=options, context=context, label=self.name)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass
