"""The stage that trains a model on data alone: from random weights, or on from where it is."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from zoo.compressor import Compressor, Context, Record, State, require_dense
from zoo.errors import Refused
from zoo.model import Model
from zoo_compress.distill.losses import CrossEntropy, LossOptions
from zoo_compress.distill.objective import CHUNK_BYTES, TokenObjective
from zoo_compress.train.loop import BYTES_PER_TRAINED, TrainingOptions, fit


class Train(Compressor):
    """Train on the next token (AdamW, warmup-stable-decay: MiniCPM, 2404.06395, section 4).

    Weights that an earlier stage made sparse keep their zeros; packed weights stay as they are.
    """

    name = "train"
    trains = True

    class Options(TrainingOptions):
        data: str = Field("train", description="which entry of the recipe's [data] table to train on")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        require_next_token(model, stage=self.name)
        packed = [path for path, traits in state.items() if any(t.kind == "packed" for t in traits)]
        require_dense(state, packed, stage=self.name, does="updates", allow=("sparse", "shared", "factored"))

    def outline(self, model: Model, options: Options) -> Record:
        return {}

    def working_bytes(self, model: Model, options: Options) -> int:
        return training_bytes(model, options)

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        windows = model.family.windows(model, context.dataset(options.data, self.name), length=options.length)
        objective = TokenObjective(model, None, [("cross-entropy", CrossEntropy(), LossOptions(weight=1.0))], {})
        fit(model, objective, windows, options=options, context=context, label=self.name)
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass


def require_next_token(model: Model, *, stage: str) -> None:
    """Refuse a model that sees the token it would be asked to predict."""
    if model.spec.task == "masked-lm":
        raise Refused(
            f"{stage} trains on the next token, but {model.spec.name} is a masked-lm model, which reads it beforehand. "
            'Distil it on a teacher\'s distribution instead: use = "distill", loss = [{ use = "kl" }].'
        )


def training_bytes(model: Model, options: Any) -> int:
    """Memory of weights, gradients, moments, activations and logits of one training step, in bytes."""
    stack = model.anatomy.select("language").stack
    tokens = options.batch * options.length
    inner = sum(block.ffn.width * 4 for block in stack.blocks if block.ffn)
    activations = 4 * tokens * (len(stack.blocks) * stack.width * 14 + inner)  # what a pre-norm block keeps for backward
    logits = 4 * min(tokens * int(model.spec.config["vocab_size"]) * 4, CHUNK_BYTES)
    return int(model.params * BYTES_PER_TRAINED + activations + logits)
