"""Inheritance: keep some blocks of a stack and drop the rest.

- "first:N" is the initialisation of Inheritune (Sanyal et al. 2024, arXiv:2404.08634, section 3): embeddings, final
  norm and head are kept as well, so the kept blocks' outputs are bit-equal to the original's.
- "influence:N" is ShortGPT (Men et al. 2024, arXiv:2403.03853, section 3.1): block influence BI = 1 - E cos(x_in,
  x_out) over the tokens of the calibration data; the blocks that turn the residual least go.
- "auto:N" is "influence:N" where there is calibration data, else "first:N".

Dropping a block moves those behind it. What is numbered by block follows (`zoo_compress.numbering`); where it cannot, the choice of
blocks is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from zoo.anatomy.modules import config_of
from zoo.anatomy.parts import Stack
from zoo.compressor import Compressor
from zoo.errors import DataError, Refused, RequestError, nearest
from zoo.model.context import Context, Progress
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import CalibrationOptions, batches, watch
from zoo_compress.numbering import keep_blocks, require_numbering

WAYS = ("first", "last", "every", "influence", "auto")


class Inherit(Compressor):
    """Keep some blocks of a stack: the first, the last, every K-th, a list, or the most influential.

    A target of several stacks ("unet.down") has the choice made in each of them.
    """

    name = "inherit"
    version = 2  # since text begins with <bos>, padding takes no part, and what is numbered by block follows

    class Options(CalibrationOptions):
        layers: str | list[int] = Field(
            description='blocks to keep: "auto:N" (by influence where there is calibration data, else the first), '
            '"influence:N" (the N that turn the residual most on calibration data), "first:N", "last:N", "every:K" '
            "(blocks 0, K, 2K, ...), or a rising list of indices such as [0, 1, 5]",
            examples=["every:2", "first:1"],
        )
        target: str = Field("language", description="the stack, or stacks, whose blocks are kept or dropped")
        keep_ends: bool = Field(True, description='with "influence:N", keep the first and the last block in any case')

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
        return (options.data,) if _way(options) == "influence" else ()

    def check(self, model: Model, state: State, options: Options) -> None:
        self.outline(model, options)

    def outline(self, model: Model, options: Options) -> Record:
        stacks = _stacks(model, options)
        indices = [_blocks_to_keep(options, stack) for stack in stacks]
        for stack, chosen in zip(stacks, indices, strict=True):
            depth = len(stack.blocks)
            # data may choose any blocks: then whichever goes, the others must do
            without_one = [[i for i in range(depth) if i != gone] for gone in range(depth)]
            for kept in [chosen, *(without_one if _way(options) == "influence" and len(chosen) < depth else [])]:
                require_numbering(model.module, stack.path, kept, depth=depth, stage=self.name)
        return {
            "stacks": [{"path": s.path, "of": len(s.blocks), "kept": k} for s, k in zip(stacks, indices, strict=True)]
        }

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record = self.outline(model, options)
        if _way(options) == "influence":
            data = batches(model, options, context, stage=self.name)
            for stack, cut in zip(_stacks(model, options), record["stacks"], strict=True):
                influence = block_influence(model, stack, data, context.progress)
                cut["kept"] = _most_influential(influence, len(cut["kept"]), keep_ends=options.keep_ends)
                cut["influence"] = [round(value, 6) for value in influence]
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
        if _way(options) != "influence":
            return 0
        from zoo_compress.dryrun import calibration

        calibrated = calibration(model, options, context)
        widest = max(stack.width or 0 for stack in _stacks(model, options))
        return calibrated.bytes + 6 * 8 * calibrated.tokens * widest  # what a cosine takes in double

    def note(self, model: Model, options: Options) -> str:
        said = []
        if _way(options) != "influence" and model.origin != "random":
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


# --- which blocks ---------------------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[str, int]:
    way, _, number = text.partition(":")
    if way not in WAYS:
        hint = nearest(way, WAYS)
        raise ValueError(
            f"{text!r} is not a choice of blocks.{hint} Write auto:N, influence:N, first:N, last:N or every:K."
        )
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{text!r} needs a number from 1 after the colon, such as '{way}:4'.")
    return way, int(number)


def _way(options: Inherit.Options) -> Literal["first", "last", "every", "influence", "auto", "list"]:
    return _parse(options.layers)[0] if isinstance(options.layers, str) else "list"  # type: ignore[return-value]


def _blocks_to_keep(options: Inherit.Options, stack: Stack) -> list[int]:
    """The indices to keep; for "influence", which only data decides, as many as will be kept."""
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
    if way == "influence" and options.keep_ends:
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
