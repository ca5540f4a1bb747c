"""The minGRU family: what zoo needs to know to build, feed, generate from, and compress such a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from zoo.anatomy import Anatomy, Linears
from zoo.anatomy.detect import detect
from zoo.family import TextFamily

from zoo_example.model import Config, MinGRU, MinGRULM

if TYPE_CHECKING:
    from zoo.model import Model


class MinGRUFamily(TextFamily):
    """Language models of minGRU blocks."""

    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    evaluation: ClassVar[tuple[str, str]] = ("top-k-accuracy", "pydoc:test")

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return MinGRULM(Config(**config)).eval()

    def initialise(self, module: nn.Module) -> None:
        """Matrices normal, norms one, and gates that open once in 1 to 150 tokens, so that some remember long from the start."""
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=part.weight.shape[1] ** -0.5)
            if isinstance(part, nn.RMSNorm):
                nn.init.ones_(part.weight)
        for part in module.modules():
            if isinstance(part, MinGRU):
                nn.init.zeros_(part.candidate.bias)
                nn.init.uniform_(part.gate.bias, -5, 2)

    def anatomy(self, module: nn.Module) -> Anatomy:
        """`detect` finds everything; which of the recurrence's layers read and write the residual is ours to say."""
        found = detect(module)
        stack = found.stack()
        blocks = []
        for block in stack.blocks:
            gate, candidate, out = (f"{block.path}.mixer.{name}" for name in ("gate", "candidate", "out"))
            recurrence = Linears(
                "mixer", f"{block.path}.mixer", (gate, candidate, out), reads=(gate, candidate), writes=(out,)
            )
            blocks.append(replace(block, linears=(recurrence,)))
        return replace(found, stacks={"language": replace(stack, blocks=tuple(blocks))})

    def body_and_head(self, module: nn.Module) -> tuple[Any, Any]:
        assert isinstance(module, MinGRULM)
        return module.body, module.lm_head

    def write_foreign(self, model: Model, path: Path) -> str:
        return "transformers has no class for minGRU"
