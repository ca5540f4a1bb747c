"""The objective of a training step: runs student and teacher, and sums the losses chunk by chunk.

Legend: B batch, T window, N = B*T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.family import Batch, TextFamily
from zoo.model import Model
from zoo_compress.distill.losses import TokenLoss

CHUNK_BYTES = 128 * 2**20  # of one fp32 (tokens, V) tensor

Weighted = tuple[str, TokenLoss, Any]


class TokenObjective(nn.Module):
    """Token and feature losses of a language model, with or without a teacher."""

    def __init__(
        self, student: Model, teacher: Model | None, token_losses: Sequence[Weighted],
        feature_losses: Mapping[str, tuple[nn.Module, float]],
    ) -> None:
        super().__init__()
        self.module = student.module
        self.features = nn.ModuleDict({name: loss for name, (loss, _) in feature_losses.items()})
        self.feature_weights = {name: weight for name, (_, weight) in feature_losses.items()}
        self.token_losses = list(token_losses)
        self._models = (student, teacher)  # a tuple: the teacher's weights must not be registered as ours

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return "loss" and each loss under its own name, all scalars; labels below 0 are left out of the mean."""
        student, teacher = self._models
        hidden, head, blocks = _run(student, batch, record=bool(self.features))
        teacher_hidden, teacher_head = None, None
        teacher_blocks: list[torch.Tensor] = []
        if teacher is not None and self._needs_teacher():
            with torch.no_grad():
                teacher_hidden, teacher_head, teacher_blocks = _run(teacher, batch, record=bool(self.features))
        sums = self._token_sums(hidden, head, teacher_hidden, teacher_head, batch["labels"].flatten())
        count = (batch["labels"] >= 0).sum().clamp_min(1)
        values = {name: total / count for (name, _, _), total in zip(self.token_losses, sums, strict=True)}
        weights = {name: options.weight for name, _, options in self.token_losses}
        for name, loss in self.features.items():
            values[name] = loss(blocks, teacher_blocks)
            weights[name] = self.feature_weights[name]
        total = torch.stack([values[name] * weights[name] for name in values]).sum()
        return {"loss": total, **values}

    def _needs_teacher(self) -> bool:
        return bool(self.features) or any(loss.needs_teacher for _, loss, _ in self.token_losses)

    def _token_sums(
        self, hidden: torch.Tensor, head: Any, teacher_hidden: torch.Tensor | None, teacher_head: Any, labels_N: torch.Tensor
    ) -> list[torch.Tensor]:
        """Sum every token loss over the tokens, a chunk at a time; chunks recompute their logits in the backward pass."""
        hidden_ND = hidden.flatten(0, 1)
        other_ND = teacher_hidden.flatten(0, 1) if teacher_hidden is not None else None
        keep = labels_N >= 0
        if not bool(keep.all()):
            hidden_ND, labels_N = hidden_ND[keep], labels_N[keep]
            other_ND = other_ND[keep] if other_ND is not None else None
        vocabulary = int(self._models[0].spec.config["vocab_size"])
        size = max(1, CHUNK_BYTES // (4 * vocabulary))
        chunks = range(0, len(labels_N), size)

        def sums(part_ND: torch.Tensor, other: torch.Tensor | None, label_N: torch.Tensor) -> torch.Tensor:
            student_NV = head(part_ND)
            with torch.no_grad():
                teacher_NV = teacher_head(other) if other is not None else None
            return torch.stack([loss(student_NV, teacher_NV, label_N, o).sum() for _, loss, o in self.token_losses])

        total = hidden.new_zeros(len(self.token_losses), dtype=torch.float32)
        for start in chunks:
            piece = slice(start, start + size)
            arguments = (hidden_ND[piece], other_ND[piece] if other_ND is not None else None, labels_N[piece])
            total = total + (sums(*arguments) if len(chunks) == 1 else checkpoint(sums, *arguments, use_reentrant=False))
        return list(total)


def _run(
    model: Model, batch: Batch, *, record: bool
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor]]:
    """Run a model up to its head: hidden (B, T, D), the head, and every block's output when asked for.

    Where body and head do not separate, the logits stand in for the hidden state and the head is the identity.
    """
    family = model.family
    assert isinstance(family, TextFamily)
    outputs: list[torch.Tensor] = []
    hooks = []

    def keep(_module: nn.Module, _inputs: Any, out: Any) -> None:
        outputs.append(out[0] if isinstance(out, tuple) else out)

    if record:
        stack = model.anatomy.select("language").stack
        hooks = [model.module.get_submodule(block.path).register_forward_hook(keep) for block in stack.blocks]
    try:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        split = family.body_and_head(model.module)
        if split is None:
            return model.module(**inputs).logits, lambda logits: logits, outputs
        body, head = split
        return body(**inputs, use_cache=False).last_hidden_state, head, outputs
    finally:
        for hook in hooks:
            hook.remove()
