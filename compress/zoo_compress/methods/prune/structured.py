"""Structured pruning: remove whole heads, FFN channels and residual dimensions, so that tensors become smaller.

Papers: DepGraph (2301.12900) for what must go together, Minitron (2407.14679) for importance from activations. With
calibration data a channel or head counts by what its reader puts out for it (E[x^2] |w_down|^2 of a channel), and the
reader is refitted by least squares once others are gone, where held-out error falls: layer by layer, in `readers.py`.
Which units go is chosen layer by layer; how many is the same in the whole target, so that the result is again a plain
model of its architecture. Removing channels or heads equals zeroing them (except where a norm spans all heads, as in
OLMo 2); removing residual width does not, since every norm then sees fewer entries, and asks for training afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from zoo.anatomy.model_types import NUMBERED_HEADS, type_of
from zoo.anatomy.modules import config_of, resolve
from zoo.anatomy.parts import Attention, Part
from zoo.compressor import Compressor, require_dense
from zoo.errors import ArtifactError, Refused
from zoo.model.context import Context
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo_compress.calibrate.footprint import disk_bytes, memory_bytes
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.dryrun import calibration
from zoo_compress.methods.prune import channels
from zoo_compress.methods.prune.cut import residual_parts
from zoo_compress.methods.prune.importance import activation, magnitude
from zoo_compress.methods.prune.readers import Reader, cut_readers
from zoo_compress.methods.prune.widths import (
    Choice,
    Heads,
    Plan,
    best,
    best_heads,
    carry_out,
    channel_parts,
    cuts,
    first,
    heads_to_keep,
    planned,
    require_parts,
    units_to_keep,
)

Amount = Annotated[float, Field(strict=True, gt=0, lt=1)] | Annotated[int, Field(strict=True, ge=1)]


class PruneStructured(Compressor):
    """Remove whole attention heads, FFN channels and residual dimensions."""

    name: ClassVar[str] = "prune.structured"
    # 3: calibration windows spread over the data, and the graph cuts joined layers alike; 4: channels and heads count by what
    # their reader puts out, and it is refitted; 5: draws of their own for each row
    version: ClassVar[int] = 5

    class Options(CalibrationOptions):
        target: str = Field(
            "language", description="part to prune, such as language.blocks[4:]; with ratio a module, such as unet"
        )
        ffn: Amount | None = Field(
            None, examples=[0.25], description="FFN channels: share removed (0.25) or number kept (1024)"
        )
        heads: Amount | None = Field(
            None, examples=[0.5, None], description="query heads: share removed or number kept, evenly per kv group"
        )
        kv_groups: Amount | None = Field(
            None, description="kv heads, each with its query heads: share removed or number kept"
        )
        width: Amount | None = Field(None, description="residual width of a whole stack: share removed or number kept")
        ratio: float | None = Field(
            None,
            gt=0,
            lt=1,
            description="share of channels removed by dependency graph, of a module that reads no tokens",
        )
        importance: Literal["auto", "activation", "magnitude"] = Field(
            "auto",
            description="choose by activations on calibration data, or by the size of weights, which harms trained models "
            'far more; "auto": by activations where there is calibration data',
        )
        refit: bool | None = Field(
            None,
            description="refit by least squares what reads the channels or heads that stay, where the error on held-out "
            "calibration windows falls; by default wherever units are chosen by activations",
        )
        round_to: int = Field(
            8, ge=1, description="FFN channels and width kept are a multiple of this, unless given as a number"
        )
        length: int = Field(512, ge=2, description="tokens in a calibration window, at most the model's context")
        batch: int = Field(1, ge=1, description="calibration windows that run together, and count as one sample")

        @model_validator(mode="after")
        def _says_what_to_remove(self) -> Self:
            sizes = [size for size in (self.ffn, self.heads, self.kv_groups, self.width) if size is not None]
            if not sizes and self.ratio is None:
                raise ValueError("say what to remove: ffn, heads, kv_groups or width (ratio for convolutional models)")
            if sizes and self.ratio is not None:
                raise ValueError("ratio prunes a whole module by its graph; leave out the other sizes")
            if self.refit and (self.importance == "magnitude" or self.ratio is not None):
                raise ValueError("refit goes by activations on calibration data; leave out importance and ratio")
            return self

    def resolved(self, options: Options, roles: Collection[str]) -> Options:
        looks = options.refit or (options.data in roles and options.ratio is None)
        by_data = "activation" if looks else "magnitude"
        importance = by_data if options.importance == "auto" else options.importance
        refit = importance == "activation" if options.refit is None else options.refit
        return options.model_copy(update={"importance": importance, "refit": refit})

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,) if options.importance == "activation" else ()

    def check(self, model: Model, state: State, options: Options) -> None:
        if options.ratio is not None:
            channels.check(model, options.target, options.ratio, stage=self.name)
            require_dense(state, state, stage=self.name, does="cuts channels out of", allow=("shared",))
            return
        if options.width is not None:  # every tensor is touched, and what is packed is no longer recognised
            require_dense(state, state, stage=self.name, does="cuts units out of", allow=("shared",))
        plan = self._plan(model, options)
        require_dense(state, _touched(plan), stage=self.name, does="cuts units out of", allow=("shared",))
        cuts(model.module, model.anatomy, plan, first(plan), stage=self.name)
        _require_whole_rows(model, plan, stage=self.name)

    def outline(self, model: Model, options: Options) -> Record:
        if options.ratio is not None:
            return channels.outline(model, options.target, options.ratio, stage=self.name)
        return self._plan(model, options).record()

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        if options.ratio is not None:
            return channels.apply(model, options.target, options.ratio, stage=self.name)
        plan = self._plan(model, options)
        record = plan.record()
        if options.importance == "activation":
            choice, record["layers"] = _choose_by_activation(model, plan, options, context)
        else:
            choice = _choose_by_magnitude(model, plan)
        carry_out(model.module, model.anatomy, plan, choice, stage=self.name)
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        if "graph" in record:
            channels.rebuild(model, record)
            return
        plan = planned(model.anatomy, record)
        if any(record.get(key) != value for key, value in plan.record().items()):
            sizes = plan.record()["found"]
            raise ArtifactError(f"{self.name} cut {record['found']}, but the model built here has {sizes}.")
        for name, left in record["kept"].items():
            pairs = (
                zip(left, record["found"][name], strict=True)
                if isinstance(left, list)
                else [(left, record["found"][name])]
            )
            if not all(type(new) is int and 0 < new <= was for new, was in pairs):
                raise ArtifactError(f"{self.name} cannot have cut {name} from {record['found'][name]} to {left}.")
        carry_out(model.module, model.anatomy, plan, first(plan), stage=self.name)

    def remedy(self, path: str) -> str:
        return "Prune only ffn, or start from another architecture."

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        # squares in double, what is kept, where it is
        cut = 16 * max(tensor.numel() for tensor in model.tensors().values())
        if options.importance != "activation" or options.ratio is not None:
            return cut
        readers = _readers(self._plan(model, options))
        if not readers:
            return max(cut, calibration(model, options, context).bytes)
        inputs = max(reader.part.units * reader.part.width for reader in readers)
        outputs = max(resolve(model.module, reader.part.path).weight.numel() // inputs for reader in readers)  # type: ignore[union-attr, operator]
        walk = memory_bytes(model, [reader.part.path for reader in readers], ("gram",), options, context)
        return max(cut, walk + 8 * inputs * (3 * inputs + 5 * outputs))  # in double what one solution takes

    def disk_bytes(self, model: Model, options: Options, context: Context) -> int:
        if options.importance != "activation" or options.ratio is not None:
            return 0
        readers = _readers(self._plan(model, options))
        return disk_bytes(model, [reader.part.path for reader in readers], options, context) if readers else 0

    def note(self, model: Model, options: Options) -> str:
        said = []
        if options.importance != "activation" and options.ratio is None and model.origin != "random":
            said.append(
                "Units are chosen by the size of their weights alone, which harms trained models far more than activations "
                'do: name calibration data in [data] and leave importance at "auto", or train or distil afterwards.'
            )
        if options.width is not None:
            said.append("Removing residual width changes what every norm sees: train or distil afterwards.")
        return " ".join(said)

    def _plan(self, model: Model, options: Options) -> Plan:
        anatomy, ffn, heads, width = model.anatomy, None, None, None
        if not anatomy.stacks:
            raise Refused(
                f"{self.name}: no transformer blocks were recognised in {type(model.module).__name__}; "
                "give ratio instead of ffn, heads, kv_groups or width."
            )
        target = anatomy.select(options.target)
        if not target.blocks:
            raise Refused(
                f"{self.name}: {options.target!r} has no transformer blocks; give ratio instead of ffn, heads, kv_groups or width."
            )
        if options.ffn is not None:
            ffn = tuple(
                units_to_keep(options.ffn, layer.width, what=f"{layer.path}: FFN channels", round_to=options.round_to)
                for layer in require_parts(target, "ffn", stage=self.name)
            )
        if (options.heads, options.kv_groups, options.width) != (None, None, None):
            _require_attention_that_stays(model.module, stage=self.name)
        if options.heads is not None or options.kv_groups is not None:
            for stack, _ in target.picks:
                _require_movable_heads(model.module, stack.path, stage=self.name)
            heads = tuple(
                heads_to_keep(layer, heads=options.heads, kv_groups=options.kv_groups)
                for layer in require_parts(target, "attention", stage=self.name)
            )
        if options.width is not None:
            if not target.whole or target.part:
                raise Refused(
                    f"{self.name}: width is one for the whole stack, but {target.text!r} is only part of it; "
                    f'use target = "{target.stack.name}".'
                )
            residual_parts(model.module, anatomy, target.stack, stage=self.name)
            what = f"{target.stack.name}: residual width"
            width = units_to_keep(options.width, target.stack.width, what=what, round_to=options.round_to)
        return Plan(target, ffn, heads, width)


def _touched(plan: Plan) -> list[str]:
    """The modules whose weights `plan` cuts, for experts also the module that holds their parameters."""
    paths = {path for ffn, _ in plan.ffns() for path in ffn.projections}
    paths |= {path for layer, _ in plan.attentions() for path in layer.projections}
    return sorted(paths | {ffn.path for ffn, _ in plan.ffns() if ffn.experts})


def _require_whole_rows(model: Model, plan: Plan, *, stage: str) -> None:
    """Refuse sizes in which experts, multiplied all at once, do not run: torch's grouped product reads 16 bytes at a time."""
    step = 16 // getattr(torch, model.dtype).itemsize
    sizes = [(size, "FFN channels") for ffn, size in plan.ffns() if ffn.experts]
    if plan.width and any(block.ffn and block.ffn.experts for block in plan.target.stack.blocks):
        sizes.append((plan.width, "residual width"))
    for size, what in sizes:
        if size % step:
            raise Refused(
                f"{stage}: {what} {size} of experts in {model.dtype} must be a multiple of {step}; keep {size // step * step or step}."
            )


def _require_movable_heads(module: nn.Module, path: str, *, stage: str) -> None:
    config, name = config_of(module, path), type(module).__name__
    fixed = ""
    if getattr(config, "alibi", False) or type_of(config) in NUMBERED_HEADS:
        fixed = f"each head of {name} has a position slope fixed by its number (ALiBi)"
    elif getattr(config, "relative_attention_num_buckets", 0):
        fixed = f"each head of {name} has its own column in a table of relative positions, which all blocks read"
    elif getattr(config, "blocksparse_vert_stride", 0) and not getattr(config, "blocksparse_homo_head_pattern", False):
        fixed = f"which blocks a head of {name} sees is fixed by its number"
    if fixed:
        raise Refused(f"{stage}: {fixed}, so heads cannot go; prune ffn instead.")


def _require_attention_that_stays(module: nn.Module, *, stage: str) -> None:
    """Refuse BigBird's kin, whose blocks take another attention for short texts, made for the head size that the config gives."""
    if any(
        hasattr(part, "set_attention_type")
        and getattr(getattr(part, "config", None), "attention_type", "") == "block_sparse"
        for part in module.modules()
    ):
        raise Refused(
            f"{stage}: {type(module).__name__} builds its attention anew from the config when a text is short "
            "(block_sparse), and the sizes that pruning leaves would be lost; prune ffn instead."
        )


def _norms(plan: Plan) -> list[str]:
    stack = plan.target.stack
    return [*stack.norms, *(norm for block in stack.blocks for norm in block.norms)]


def _choose_by_magnitude(model: Model, plan: Plan) -> Choice:
    module = model.module
    ffn = [best(magnitude(module, channel_parts(layer), experts=bool(layer.experts)), n) for layer, n in plan.ffns()]
    heads = []
    for layer, sizes in plan.attentions():
        kv_scores = magnitude(module, [layer.k, layer.v])
        scores = magnitude(module, [layer.q, layer.o])
        heads.append(best_heads(scores, layer.kv_heads, sizes, kv_scores=kv_scores))
    width = None
    if plan.width:
        parts = residual_parts(module, model.anatomy, plan.target.stack, stage=PruneStructured.name)
        width = best(magnitude(module, _matrices(module, parts)), plan.width)
    return Choice(ffn, heads, width)


def _matrices(module: nn.Module, parts: Sequence[Part]) -> list[Part]:
    """Each matrix once; gains of norms are left out, since some are stored as gain - 1 (Gemma)."""
    once: dict[tuple[int, int], Part] = {}
    for part in parts:
        holder = resolve(module, part.path)
        tensor = holder if isinstance(holder, Tensor) else holder._parameters.get("weight")
        if tensor is not None and tensor.dim() > 1:
            once.setdefault((id(tensor), part.axis), part)
    return list(once.values())


def _choose_by_activation(
    model: Model, plan: Plan, options: PruneStructured.Options, context: Context
) -> tuple[Choice, dict[str, Record]]:
    """Choose the units to keep on calibration data, and refit what reads them; also return what is told of each reader."""
    module, stage = model.module, PruneStructured.name
    data = batches(model, options, context, stage=stage)
    experts, norms = [ffn for ffn, _ in plan.ffns() if ffn.experts], _norms(plan) if plan.width else []
    seen: dict[int, Tensor] = {}
    if experts or norms:
        scores = activation(model, data, experts=experts, norms=norms, progress=context.progress)
        seen = {id(resolve(module, path)): score for path, score in scores.items()}

    def of(path: str) -> Tensor:
        score = seen.get(id(resolve(module, path)))
        if score is None:
            raise Refused(f"{stage}: {path} is not used by the calibration data; use magnitude instead.")
        return score.sqrt()

    width = best(torch.stack([of(norm) for norm in norms]).sum(0), plan.width) if plan.width else None
    chosen = {ffn.path: best(of(ffn.path), n) for ffn, n in plan.ffns() if ffn.experts}
    readers = _readers(plan)
    refit = options.refit is not False
    kept, layers = cut_readers(model, readers, data, refit=refit, context=context, stage=stage) if readers else ({}, {})
    units = {id(resolve(module, path)): these for path, these in kept.items()}
    ffns = [chosen[f.path] if f.experts else units[id(resolve(module, f.down.path))] for f, _ in plan.ffns()]
    heads = []
    for layer, _ in plan.attentions():
        q = units[id(resolve(module, layer.o.path))]
        heads.append((q, torch.unique(q // (layer.heads // layer.kv_heads))))
    return Choice(ffns, heads, width), layers


def _readers(plan: Plan) -> list[Reader]:
    """What reads the channels and heads that `plan` cuts; the channels of experts in one tensor have no layer of their own."""
    ffns = [Reader(ffn.down, partial(best, count=n)) for ffn, n in plan.ffns() if not ffn.experts]
    return ffns + [Reader(layer.o, partial(_query_heads, layer, sizes)) for layer, sizes in plan.attentions()]


def _query_heads(layer: Attention, sizes: Heads, scores: Tensor) -> Tensor:
    return best_heads(scores, layer.kv_heads, sizes)[0]
