"""What a family can get wrong, one thing at a time: the package `zoo_unsound.broken` of a plugin that is made for the tests."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from zoo_unsound.family import Config, PatchFamily, PatchNet

from zoo.anatomy.parts import Anatomy
from zoo.model.model import Model


class Miscounted(PatchFamily):
    """Its model has other parameters than are declared."""


class Misplaced(PatchFamily):
    """Its anatomy takes other rows for the heads of the queries than for those of the keys."""

    def anatomy(self, module: nn.Module) -> Anatomy:
        found = super().anatomy(module)
        stack = found.stacks["vision"]
        blocks = []
        for block in stack.blocks:
            q = replace(block.attention.q, stride=1, width=16)
            blocks.append(replace(block, attention=replace(block.attention, q=q)))
        return replace(found, stacks={"vision": replace(stack, blocks=tuple(blocks))})


class Incomplete(PatchFamily):
    """Its anatomy leaves out the blocks."""

    def anatomy(self, module: nn.Module) -> Anatomy:
        return Anatomy()


class Idle(PatchNet):
    """A parameter of it is never used."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.unused = nn.Linear(4, 4)


class Idling(PatchFamily):
    """A parameter of its model is never used."""

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return Idle(Config(**config)).eval()


class Wavering(PatchFamily):
    """What it says of an image depends on chance."""

    def preprocess(self, model: Model, image: Any) -> torch.Tensor:
        pixels: torch.Tensor = super().preprocess(model, image)
        return pixels + 10 * random.SystemRandom().random()


class Unsteady(PatchFamily):
    """Its random weights do not follow from the seed."""

    def initialise(self, module: nn.Module) -> None:
        super().initialise(module)
        nn.init.constant_(module.head.bias, random.SystemRandom().random())


class Infinite(PatchFamily):
    """It computes no numbers."""

    def forward(self, model: Model, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = super().forward(model, batch)
        return logits / 0


class Stirring(PatchFamily):
    """Running its models sets the global random state."""

    def forward(self, model: Model, batch: Any) -> torch.Tensor:
        torch.manual_seed(0)
        logits: torch.Tensor = super().forward(model, batch)
        return logits


class Counting(PatchFamily):
    """It computes something else in every process."""

    def forward(self, model: Model, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = super().forward(model, batch)
        return logits * os.getpid()


class Hoarding(PatchFamily):
    """It keeps in itself what it computed."""

    def __init__(self) -> None:
        self.computed: list[torch.Tensor] = []

    def forward(self, model: Model, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = super().forward(model, batch)
        self.computed.append(logits)
        return logits


class Wakeful(PatchFamily):
    """Its models are in train mode."""

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return PatchNet(Config(**config))
