"""Inheritance: keep some blocks of a stack and drop the rest.

- "first:N" is the initialisation of Inheritune (Sanyal et al. 2024, arXiv:2404.08634, section 3): embeddings, final
  norm and head are kept as well, so the kept blocks' outputs are bit-equal to the original's.
- "influence:N" is ShortGPT (Men et al. 2024, arXiv:2403.03853, section 3.1): block influence BI = 1 - E cos(x_in,
  x_out) over the tokens of the calibration data; the blocks that turn the residual least go.
- "greedy:N" drops one block after another, each time the one without which the loss on the calibration data is least
  (SLEB, Song et al. 2024, arXiv:2402.09025, section 3); where no data says what is right (embeddings), the one without
  which the outputs stay nearest to those of the whole model. Every trial is a model as it would be saved.
- "auto:N" is "influence:N" where there is calibration data, else "first:N".

Dropping a block moves those behind it. What is numbered by block follows (`zoo_compress.numbering`); where it cannot, the choice of
blocks is refused.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from zoo.anatomy.modules import config_of
from zoo.anatomy.parts import Stack
from zoo.compressor import Compressor
from zoo.errors import DataError, Refused, RequestError, nearest
from zoo.family.task import task_of
from zoo.model.context import Context, Progress
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo.model.trial import UNFIT
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import CalibrationOptions, batches, watch
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.numbering import keep_blocks, require_numbering
from zoo_compress.train.objective import CHUNK_BYTES, Objective

WAYS = ("first", "last", "every", "influence", "greedy", "auto")
BY_DATA = ("influence", "greedy")  # of which data decides


class Inherit(Compressor):
    """Keep some blocks of a stack: the first, the last, every K-th, a list, or those that data shows to matter most.

    A target of several stacks ("unet.down") has the choice made in each of them.
    """

    name = "inherit"
    # 2: text begins with <bos>, padding takes no part, what is numbered by block follows; 3: draws of their own for each row
    version = 3

    class Options(CalibrationOptions):
        layers: str | list[int] = Field(
            description='blocks to keep: "auto:N" (by influence where there is calibration data, else the first), '
            '"influence:N" (the N that turn the residual most on calibration data), "greedy:N" (drop the block whose removal '
            'raises the loss on calibration data least, one after another), "first:N", "last:N", "every:K" '
            "(blocks 0, K, 2K, ...), or a rising list of indices such as [0, 1, 5]",
            examples=["every:2", "first:1"],
        )
        target: str = Field("language", description="the stack, or stacks, whose blocks are kept or dropped")
        keep_ends: bool = Field(
            True, description='with "influence:N" and "greedy:N", keep the first and the last block'
        )

        @field_validator("layers")
        @classmethod
        def _readable(cls, value: str | list[int]) -> str | list[int]:
            if isinstance(value, str):
                _parse(value)
            elif not value:
                raise ValueError("an empty list keeps no block")
            return value

    def resolved(self, options: Options, roles: Collection[str]) -> Options:
        if _way(options) != "auto":
            return options
        number = _parse(str(options.layers))[1]
        looks = options.data in roles and (number > 1 or not options.keep_ends)
        return options.model_copy(update={"layers": f"{'influence' if looks else 'first'}:{number}"})

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,) if _way(options) in BY_DATA else ()

    def check(self, model: Model, state: State, options: Options) -> None:
        self.outline(model, options)

    def outline(self, model: Model, options: Options) -> Record:
        stacks = _stacks(model, options)
        indices = [_blocks_to_keep(options, stack) for stack in stacks]
        for stack, chosen in zip(stacks, indices, strict=True):
            depth = len(stack.blocks)
            # data may choose any blocks: then whichever goes, the others must do
            without_one = [[i for i in range(depth) if i != gone] for gone in range(depth)]
            for kept in [chosen, *(without_one if _way(options) in BY_DATA and len(chosen) < depth else [])]:
                require_numbering(model.module, stack.path, kept, depth=depth, stage=self.name)
        return {
            "stacks": [{"path": s.path, "of": len(s.blocks), "kept": k} for s, k in zip(stacks, indices, strict=True)]
        }

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record = self.outline(model, options)
        if _way(options) in BY_DATA:
            data = batches(model, options, context, stage=self.name)
            for stack, cut in zip(_stacks(model, options), record["stacks"], strict=True):
                choose = _by_influence if _way(options) == "influence" else _by_trial
                cut |= choose(model, stack, data, len(cut["kept"]), options.keep_ends, context.progress)
        self.rebuild(model, record)
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        for cut in record["stacks"]:
            keep_blocks(model.module, cut["path"], list(cut["kept"]), depth=cut["of"])

    def moved(self, record: Record, path: str) -> str | None:
        for cut in record["stacks"]:
            start = f"{cut['path']}."
            if path.startswith(start):
                index, dot, rest = path.removeprefix(start).partition(".")
                indices = list(cut["kept"])
                return f"{start}{indices.index(int(index))}{dot}{rest}" if int(index) in indices else None
        return path

    def remedy(self, path: str) -> str:
        return "Keep other blocks: of a model whose blocks are of several kinds some of each, or the first ones."

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        if _way(options) not in BY_DATA:
            return 0
        from zoo_compress.dryrun import calibration

        calibrated = calibration(model, options, context)
        if _way(options) == "greedy":
            return calibrated.bytes + 3 * CHUNK_BYTES  # logits, and what a loss makes of them
        widest = max(stack.width or 0 for stack in _stacks(model, options))
        return calibrated.bytes + 6 * 8 * calibrated.tokens * widest  # what a cosine takes in double

    def note(self, model: Model, options: Options) -> str:
        said = []
        if _way(options) == "greedy":
            trials = sum(
                _trials(len(s.blocks), len(_blocks_to_keep(options, s)), options.keep_ends)
                for s in _stacks(model, options)
            )
            said.append(f"Tries {trials} removals, each with a pass over the calibration data.")
        if _way(options) not in BY_DATA and model.origin != "random":
            said.append(
                "Blocks are chosen without a look at what they do, which harms trained models far more than by influence: "
                'name calibration data in [data] and write layers = "auto:N", or train or distil afterwards.'
            )
        configs = [config_of(model.module, stack.path) for stack in _stacks(model, options)]
        if any(getattr(c, "scale_attn_by_inverse_layer_idx", False) for c in configs) and _way(options) != "first":
            said.append(
                "This model scales attention by 1 / (layer + 1); kept blocks keep the scale of the depth they had."
            )
        return " ".join(said)


def block_influence(model: Model, stack: Stack, data: Sequence[Batch], progress: Progress | None = None) -> list[float]:
    """Return 1 - mean cos(x_in, x_out) over all tokens for each block: 0 for an identity, at most 2.

    Raises:
        DataError: the data does not reach a block, as text does not reach an encoder of sound.
    """
    sums = [0.0] * len(stack.blocks)
    tokens = [0] * len(stack.blocks)

    def watcher(index: int) -> Any:
        def see(read_BTD: torch.Tensor, wrote_BTD: torch.Tensor, *_: Any) -> None:
            # double, and an eps far below any norm: an identity block gives 0 to the last bits
            cosine_BT = F.cosine_similarity(read_BTD.double(), wrote_BTD.double(), dim=-1, eps=1e-30)
            sums[index] += float((1 - cosine_BT).sum())
            tokens[index] += cosine_BT.numel()

        return see

    watch(
        model,
        data,
        {block.path: watcher(i) for i, block in enumerate(stack.blocks)},
        until=stack.blocks[-1].path,
        progress=progress,
    )
    if 0 in tokens:
        raise DataError(
            f"inherit: the calibration data never reached {stack.blocks[tokens.index(0)].path}, whose influence is not known. "
            'Choose blocks without data, such as layers = "first:2", or another target.'
        )
    return [total / count for total, count in zip(sums, tokens, strict=True)]


# --- depth by trial --------------------------------------------------------------------------------------------------


def _by_influence(
    model: Model, stack: Stack, data: Sequence[Batch], count: int, keep_ends: bool, progress: Progress
) -> Record:
    influence = block_influence(model, stack, data, progress)
    kept = _most_influential(influence, count, keep_ends=keep_ends)
    return {"kept": kept, "influence": [round(value, 6) for value in influence]}


@torch.no_grad()
def _by_trial(
    model: Model, stack: Stack, data: Sequence[Batch], count: int, keep_ends: bool, progress: Progress
) -> Record:
    """Drop blocks one after another; the record says what the model cost without each that went, in the order they did."""
    block_influence(
        model, stack, data, progress
    )  # refuses data that does not reach a block: removal would seem to cost nothing
    depth = len(stack.blocks)
    kept, ends = list(range(depth)), {0, depth - 1} if keep_ends else set()
    measure, cost = _measure(model, data)
    whole = cost(model)
    dropped: list[Record] = []
    total = _trials(depth, count, keep_ends)
    trials = progress.track(range(total), total=total, label=f"inherit: {stack.name} without a block")
    while len(kept) > count:
        costs = {}
        for block in [block for block in kept if block not in ends]:
            next(trials)
            rest = [other for other in kept if other != block]
            costs[block] = _cost_of(model, stack, rest, cost)
        block = min(costs, key=lambda block: (costs[block], -block))  # of equals the later, as by influence
        if costs[block] == float("inf"):
            raise Refused(
                f"inherit: without any more of the blocks {kept} of {stack.name!r} the model does not run, "
                f"so {count} cannot be all that is kept."
            )
        kept.remove(block)
        dropped.append({"block": block, measure: round(costs[block], 6)})
    next(trials, None)
    return {"kept": kept, measure: round(whole, 6), "dropped": dropped}


def _trials(depth: int, count: int, keep_ends: bool) -> int:
    """How many removals are tried until `count` blocks are left."""
    return sum(left - 2 * keep_ends for left in range(count + 1, depth + 1))


def _cost_of(model: Model, stack: Stack, kept: list[int], cost: Callable[[Model], float]) -> float:
    """What a model with these blocks alone costs; infinitely much where it does not run."""
    own = {id(tensor): tensor for tensor in (*model.module.parameters(), *model.module.buffers())}
    trial = replace(model, module=copy.deepcopy(model.module, own))  # modules of its own, the same tensors
    try:
        keep_blocks(trial.module, stack.path, kept, depth=len(stack.blocks))
        value = cost(trial)
    except UNFIT:
        return float("inf")
    return value if value == value else float("inf")


def _measure(model: Model, data: Sequence[Batch]) -> tuple[str, Callable[[Model], float]]:
    """What removal is judged by, and its name: the task's own loss, or how far outputs are from those of the whole model."""
    sizes = [len(next(iter(batch.values()))) for batch in data]
    losses, _ = resolve_losses(task_of(model).losses(model))
    if losses:

        def loss(trial: Model) -> float:
            objective = Objective(trial, None, losses)
            values = [float(objective(batch)["loss"]) for batch in data]
            return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)

        return "loss", loss
    outputs = [model.family.forward(model, batch).double() for batch in data]

    def error(trial: Model) -> float:
        lost = sum(
            float((trial.family.forward(trial, batch).double() - whole).square().sum())
            for batch, whole in zip(data, outputs, strict=True)
        )
        return float((lost / sum(float(whole.square().sum()) for whole in outputs)) ** 0.5)

    return "error", error


# --- which blocks ---------------------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[str, int]:
    way, _, number = text.partition(":")
    if way not in WAYS:
        hint = nearest(way, WAYS)
        raise ValueError(
            f"{text!r} is not a choice of blocks.{hint} Write auto:N, influence:N, greedy:N, first:N, last:N or every:K."
        )
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{text!r} needs a number from 1 after the colon, such as '{way}:4'.")
    return way, int(number)


def _way(options: Inherit.Options) -> Literal["first", "last", "every", "influence", "greedy", "auto", "list"]:
    return _parse(options.layers)[0] if isinstance(options.layers, str) else "list"  # type: ignore[return-value]


def _blocks_to_keep(options: Inherit.Options, stack: Stack) -> list[int]:
    """The indices to keep; where only data decides, as many as will be kept."""
    depth = len(stack.blocks)
    if not isinstance(options.layers, str):
        return _listed(options.layers, depth)
    way, number = _parse(options.layers)
    if way == "every":
        return list(range(0, depth, number))
    if number > depth:
        raise Refused(f"inherit: {options.layers!r} asks for {number} blocks, but {stack.name!r} has {depth}.")
    if way == "last":
        return list(range(depth - number, depth))
    if way in BY_DATA and options.keep_ends:
        if number < 2 <= depth:
            raise Refused(f"inherit: {options.layers!r} cannot keep both ends; ask for 2, or set keep_ends = false.")
        return [*range(number - 1), depth - 1]
    return list(range(number))


def _listed(layers: list[int], depth: int) -> list[int]:
    wrong = [index for index in layers if not -depth <= index < depth]
    if wrong:
        raise Refused(f"inherit: no block {wrong[0]}; the stack has blocks 0 to {depth - 1}.")
    indices = [index % depth for index in layers]
    if any(a >= b for a, b in itertools.pairwise(indices)):
        raise Refused(f"inherit: layers = {layers} must rise, each block once; blocks keep their order.")
    return indices


def _most_influential(influence: list[float], count: int, *, keep_ends: bool) -> list[int]:
    """The `count` blocks of largest influence in their own order; of equals the earlier."""
    last = len(influence) - 1
    ends = {0, last} if keep_ends else set()
    ranked = sorted(range(len(influence)), key=lambda i: (i not in ends, -influence[i], i))
    return sorted(ranked[:count])


def _stacks(model: Model, options: Inherit.Options) -> list[Stack]:
    target = model.anatomy.select(options.target)
    stacks = [stack for stack, _ in target.picks]
    if not stacks:
        raise RequestError(f"inherit keeps or drops blocks, and {options.target!r} has none.")
    if not target.whole or target.part:
        raise RequestError(f"inherit keeps or drops blocks of a whole stack: write target = {stacks[0].name!r}.")
    return stacks
