"""The objective of a training step: runs student and teacher, and sums the losses chunk by chunk.

Legend: N rows, V outputs of a row, D width of the hidden state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.model.model import Model
from zoo.tensors.batch import Batch, Rows, unpadded, without_padding, written
from zoo_compress.losses.resolve import WeightedFeature, WeightedRow

CHUNK_BYTES = 128 * 2**20  # of one fp32 (rows, V) tensor

TOKENS = "tokens"  # what feature losses are a mean over, beside the kinds of rows
Counts = Mapping[str, float]  # rows of each kind, and tokens

Blocks = dict[str, list[torch.Tensor]]  # outputs of a stack's blocks, by feature loss


class Objective(nn.Module):
    """Row and feature losses of a model of any modality, with or without a teacher."""

    def __init__(
        self,
        student: Model,
        teacher: Model | None,
        row_losses: Sequence[WeightedRow],
        feature_losses: Sequence[WeightedFeature] = (),
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.module = student.module
        self.row_losses = list(row_losses)
        self.kinds = tuple(dict.fromkeys(loss.kind for _, loss, _ in row_losses))
        self.targets = {name: options.target for name, _, options in feature_losses}
        self.weights = {name: options.weight for name, _, options in (*row_losses, *feature_losses)}
        self.features = nn.ModuleDict()
        self._models = (student, teacher)  # a tuple: the teacher's weights must not be registered as ours
        if teacher is not None:
            for name, loss, options in feature_losses:
                (a, b), (c, d) = (
                    (len(s.blocks), s.width) for s in (m.anatomy.stack(options.target) for m in (student, teacher))
                )
                built = loss.build(layers=(a, c), widths=(b, d), options=options, seed=seed)
                # parameters of a dry run cannot be moved, not even to where they are
                there = all(tensor.device == student.device for tensor in built.parameters())
                self.features[name] = built if there else built.to(student.device)
        self.taught = bool(self.features) or any(loss.needs_teacher for _, loss, _ in row_losses)

    @property
    def teacher(self) -> Model | None:
        return self._models[1]

    def counts(self, batch: Batch) -> dict[str, int]:
        """What the losses of a batch are means over: its rows of each kind, and its tokens."""
        student, _ = self._models
        return {**student.family.counts(student, batch, self.kinds), TOKENS: _tokens(batch)}

    def forward(self, batch: Batch, whole: Counts | None = None) -> dict[str, torch.Tensor]:
        """Return "loss" and each loss under its own name, all scalars: means over rows and over tokens.

        Args:
            whole: the counts of the batch that this one is a part of. What is returned is then this part's share, and the
                shares of all parts add up to the losses of the whole.
        """
        whole = self.counts(batch) if whole is None else whole
        student, teacher = self._models
        if teacher is not None and self.taught:
            batch = student.family.shared_batch(student, teacher, batch)
        with self._recorded(student) as blocks:
            mine = student.family.rows(student, batch, self.kinds)
        theirs: dict[str, Rows] = {}
        if teacher is not None and self.taught:
            with torch.no_grad(), self._recorded(teacher) as teacher_blocks:
                theirs = student.family.teacher_rows(student, teacher, batch, self.kinds)
        values: dict[str, torch.Tensor] = {}
        for kind in self.kinds:
            values |= self._row_values(kind, mine[kind], theirs.get(kind), of=whole[kind])
        kept_BT = unpadded(batch)
        for name, loss in self.features.items():
            pair = ([without_padding(out, kept_BT) for out in of[name]] for of in (blocks, teacher_blocks))
            values[name] = loss(*pair) * (_tokens(batch) / max(1, whole[TOKENS]))
        total = torch.stack([values[name] * self.weights[name] for name in self.weights]).sum()
        return {"loss": total, **{name: values[name] for name in self.weights}}

    def _recorded(self, model: Model) -> AbstractContextManager[Blocks]:
        return _recorded(model, self.targets if self.features else {})

    def _row_values(self, kind: str, mine: Rows, theirs: Rows | None, *, of: float) -> dict[str, torch.Tensor]:
        """The share in the mean over `of` rows that each loss on rows of this kind has here; without rows, zero."""
        losses = [(name, loss, options) for name, loss, options in self.row_losses if loss.kind == kind]
        share = len(mine) / max(1, of)
        values = {name: _value(loss, mine, theirs, options) * share for name, loss, options in losses if loss.whole}
        chunked = [weighted for weighted in losses if not weighted[1].whole]
        if chunked:
            means = _sums(chunked, mine, theirs) / max(1, of)
            values |= {name: mean for (name, _, _), mean in zip(chunked, means, strict=True)}
        return values


def _tokens(batch: Batch) -> int:
    """The tokens of a batch that are no padding; its records, where these are all of one size."""
    mask_BT = batch.get("attention_mask")
    return len(next(iter(batch.values()))) if mask_BT is None else int(mask_BT.sum())


def _value(loss: Any, mine: Rows, theirs: Rows | None, options: Any) -> torch.Tensor:
    """Call a loss on rows; the teacher is not differentiated."""
    with torch.no_grad():
        other = theirs.head(theirs.hidden) if theirs is not None and loss.needs_teacher else None
    value: torch.Tensor = loss(*_shared(loss, mine.head(mine.hidden), other), mine, options)
    return value


def _shared(
    loss: Any, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a loss with a teacher compares: the outputs that both have, cut before any softmax.

    Tables of one tokenizer may be padded to two lengths; the rows beyond the shorter stand for no token.
    """
    if teacher_NV is None or not loss.needs_teacher or not loss.padded:
        return student_NV, teacher_NV
    common = min(student_NV.shape[-1], teacher_NV.shape[-1])
    return student_NV[..., :common], teacher_NV[..., :common]


def _sums(losses: Sequence[WeightedRow], mine: Rows, theirs: Rows | None) -> torch.Tensor:
    """Sum each loss over the rows, a chunk at a time; chunks compute their logits again in the backward pass."""
    taught = theirs is not None and any(loss.needs_teacher for _, loss, _ in losses)
    if not len(mine):
        return mine.hidden.float().sum().expand(len(losses))  # zero, with a gradient

    def sums(part: Rows, other: Rows | None) -> torch.Tensor:
        student_NV = part.head(part.hidden)
        with torch.no_grad():
            teacher_NV = other.head(other.hidden) if other is not None else None
        return torch.stack(
            [loss(*_shared(loss, student_NV, teacher_NV), part, options).sum() for _, loss, options in losses]
        )

    with torch.no_grad():
        width = mine.head(mine.hidden[:1]).shape[-1]
    size = max(1, CHUNK_BYTES // (4 * width))
    starts = range(0, len(mine), size)
    total = mine.hidden.new_zeros(len(losses), dtype=torch.float32)
    for start in starts:
        piece = slice(start, start + size)
        pair = mine[piece], theirs[piece] if taught and theirs is not None else None
        total = total + (sums(*pair) if len(starts) == 1 else checkpoint(sums, *pair, use_reentrant=False))
    return total


@contextmanager
def _recorded(model: Model, targets: Mapping[str, str]) -> Iterator[Blocks]:
    """Keep the outputs of the blocks of each target while the model runs."""
    outputs: Blocks = {name: [] for name in targets}
    hooks: list[Any] = []
    for name, target in targets.items():

        def keep(_module: nn.Module, _inputs: Any, out: Any, block_outputs: list[torch.Tensor] = outputs[name]) -> None:
            block_outputs.append(written(out))

        blocks = [model.module.get_submodule(block.path) for block in model.anatomy.stack(target).blocks]
        hooks += [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
