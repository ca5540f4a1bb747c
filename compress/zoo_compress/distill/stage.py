"""The distillation stage: train the compressed model to follow a teacher."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from zoo import registry
from zoo.compressor import Compressor, Context, Record, State, require_dense
from zoo.errors import RecipeError, Refused, UnknownName, nearest
from zoo.model import Model
from zoo_compress.distill.losses import FeatureLoss, LossOptions, TokenLoss
from zoo_compress.distill.objective import TokenObjective, Weighted
from zoo_compress.recipe import validated
from zoo_compress.train.loop import TrainingOptions, fit
from zoo_compress.train.stage import require_next_token, training_bytes


class Distill(Compressor):
    """Train on a teacher's output distribution, and where asked on its hidden states (Hinton et al. 2015, 1503.02531).

    The loss is a weighted sum of registered losses: "kl" (forward KL at a temperature), "cross-entropy" (the data),
    "hidden" (block outputs through a layer map). Logits are made a chunk of tokens at a time, so two (tokens,
    vocabulary) tensors never exist in full. Forward KL over the full vocabulary is what Gemma 2 trains with
    (2408.00118, section 3) and Minitron recovers pruned models with (2407.14679, section 4).
    """

    name = "distill"
    trains = True

    class Options(TrainingOptions):
        teacher: str = Field("original", description="a model name or path; \"original\" is the recipe's model before any stage")
        loss: tuple[dict[str, Any], ...] = Field(
            ({"use": "kl"},), min_length=1, description='losses, each {use = "kl", weight = 1.0, ...}'
        )
        data: str = Field("train", description="which entry of the recipe's [data] table to train on")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        if any(name == "cross-entropy" for name, *_ in losses(options)[0]):
            require_next_token(model, stage="distill with cross-entropy")
        packed = [path for path, traits in state.items() if any(t.kind == "packed" for t in traits)]
        require_dense(state, packed, stage=self.name, does="trains", allow=("sparse", "shared", "factored"))

    def check_teacher(self, model: Model, teacher: Model) -> None:
        """Refuse a teacher whose vocabulary is not the student's."""
        mine, theirs = (int(m.spec.config.get("vocab_size", 0)) for m in (model, teacher))
        if mine != theirs:
            raise Refused(
                f"distill compares distributions over one vocabulary: {model.spec.name} has {mine} tokens, the teacher "
                f"{teacher.spec.name} {theirs}. Choose a teacher with the same tokenizer."
            )

    def outline(self, model: Model, options: Options) -> Record:
        return {}

    def working_bytes(self, model: Model, options: Options) -> int:
        return training_bytes(model, options)

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        assert context.load is not None
        teacher = context.load(options.teacher)
        self.check_teacher(model, teacher)
        teacher.module.to(model.device)
        tokens, features = losses(options)
        shapes = [(len(stack.blocks), stack.width) for stack in (m.anatomy.select("language").stack for m in (model, teacher))]
        built = {
            name: (loss.build(layers=(shapes[0][0], shapes[1][0]), widths=(shapes[0][1], shapes[1][1]), options=o,
                              seed=context.seed).to(model.device), o.weight)
            for name, loss, o in features
        }  # fmt: skip
        windows = model.family.windows(model, context.dataset(options.data, self.name), length=options.length)
        objective = TokenObjective(model, teacher, tokens, built)
        fit(model, objective, windows, options=options, context=context, label=self.name)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass


def losses(options: Distill.Options) -> tuple[list[Weighted], list[tuple[str, FeatureLoss, LossOptions]]]:
    """Resolve the losses a recipe names, token losses apart from feature losses.

    Raises:
        UnknownName, RecipeError: no such loss, or an option that does not fit it.
    """
    tokens: list[Weighted] = []
    features: list[tuple[str, FeatureLoss, LossOptions]] = []
    for request in options.loss:
        name = str(request.get("use", ""))
        if name not in registry.names("loss"):
            raise UnknownName(f"No loss named {name!r}.{nearest(name, registry.names('loss'))} Losses: {', '.join(registry.names('loss'))}.")
        found = registry.loss(name)
        own = validated(found.Options, {key: value for key, value in request.items() if key != "use"}, what=f"loss {name}")
        if any(name == other for other, *_ in (*tokens, *features)):
            raise RecipeError(f"loss {name!r} is listed twice; give it one weight.")
        if isinstance(found, TokenLoss):
            tokens.append((name, found, own))
        else:
            features.append((name, found, own))
    return tokens, features
