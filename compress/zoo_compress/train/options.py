"""The options of training, and what of a model a stage may train."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn

from zoo.compressor import require_dense
from zoo.errors import Refused, UnknownName, nearest
from zoo.family.task import task_of
from zoo.model.lineage import State
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.system import processes
from zoo_compress.losses.resolve import WeightedRow
from zoo_compress.train.schedules import Decay


class TrainingOptions(CompressorOptions):
    """Options that every training stage shares."""

    loss: tuple[dict[str, Any], ...] = Field(
        (), description='losses, each {use = "kl", weight = 1.0, ...}; empty: what models of this kind are trained on'
    )
    only: tuple[str, ...] = Field(
        (), description='train these modules alone, by path, such as ["projector"]; empty: all'
    )
    steps: int = Field(200, ge=1, examples=[2], description="optimizer steps")
    batch: int = Field(8, ge=1, examples=[2], description="windows in a batch")
    accumulate: int = Field(
        1,
        ge=1,
        description="parts that a batch is run in, one after another: less memory, and the same result but for rounding",
    )
    length: int = Field(256, ge=2, examples=[64], description="tokens in a window, for models that read text")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup: int = Field(20, ge=0, examples=[1], description="steps of linear warm-up, at most half of all")
    decay: float = Field(
        0.3, ge=0, le=1, description="share of the steps over which the rate falls, to just above zero"
    )
    decay_shape: Decay = Field("1-sqrt", description="how the rate falls")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="AdamW weight decay on the weights of linear and convolutional layers, tied heads left out",
    )
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    @model_validator(mode="after")
    def _some_windows_in_each_part(self) -> Self:
        if self.accumulate > self.batch:
            raise ValueError(
                f"accumulate = {self.accumulate} is more parts than batch = {self.batch} has windows; lower it."
            )
        return self


def require_parts(model: Model, options: TrainingOptions, *, stage: str) -> None:
    """Refuse `only` where it names a module that the model does not have."""
    paths = {path for path, _ in model.module.named_modules()}
    for name in options.only:
        if name not in paths:
            top = [path for path, _ in model.module.named_children()]
            raise UnknownName(
                f"{stage}: the model has no module {name!r} to train.{nearest(name, paths)} Its parts: {', '.join(top)}."
            )


def trainable(model: Model, options: TrainingOptions) -> dict[str, nn.Parameter]:
    """The parameters the stage may change, by name, each marked as such."""
    parts = [model.module.get_submodule(name) for name in options.only] or [model.module]
    wanted = {id(p) for part in parts for p in part.parameters() if p.is_floating_point()}
    trained = {name: p for name, p in model.module.named_parameters() if id(p) in wanted}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def check_training(
    model: Model, state: State, options: TrainingOptions, rows: list[WeightedRow], *, stage: str, does: str
) -> None:
    """Refuse what cannot be trained: packed weights, a module that is not there, a loss that does not fit the model."""
    packed = [path for path, traits in state.items() if any(t.kind == "packed" for t in traits)]
    require_dense(state, packed, stage=stage, does=does, allow=("sparse", "shared", "factored"))
    require_parts(model, options, stage=stage)
    for name, loss, _ in rows:
        if loss.whole and (options.accumulate > 1 or processes.several()):
            parts = f"accumulate = {options.accumulate}" if options.accumulate > 1 else "several processes"
            raise Refused(
                f"{stage}: loss {name!r} relates all samples of a batch to one another, and {parts} would run it in parts; "
                "train in one process without accumulate, or name other losses."
            )
        if loss.kind not in (kinds := task_of(model).kinds(model)):
            raise Refused(
                f"{stage}: loss {name!r} compares {loss.kind} rows, which {model.spec.modality} models of this task do not have; "
                f"theirs are {', '.join(kinds)}."
            )
        if loss.needs_target and task_of(model).masks and getattr(model.processor, "mask_token_id", 0) is None:
            raise Refused(
                f"{stage} hides tokens of a masked-lm model, and the tokenizer of {model.spec.name} has no mask token. "
                'Distil it on a teacher\'s distribution instead: use = "distill", loss = [{ use = "kl" }].'
            )
