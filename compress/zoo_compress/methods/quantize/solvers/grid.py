"""The grid that a weight is put on: which codes there are, and the scale and zero of every group of neighbouring inputs.

weight = (code - zero) * scale. Scales are rounded to what is stored before any code is chosen, so that codes fit them.
"""

# O out, I in, G groups of neighbouring inputs, g inputs in a group

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST, SMALLEST = 65280.0, 2.0**-24  # of the positive numbers that bf16 and fp16 both hold


class Steps(NamedTuple):
    """The scale and the zero of every group, (out, groups), float32."""

    scale: Tensor
    zero: Tensor

    def each(self, inputs: int) -> Steps:
        """The scale and zero of every input, (out, in)."""
        group = inputs // self.scale.shape[1]
        return Steps(self.scale.repeat_interleave(group, 1), self.zero.repeat_interleave(group, 1))


class Codes(NamedTuple):
    """A weight on a grid: whole numbers (out, in) as float32, and their steps."""

    codes: Tensor
    steps: Steps

    def weight(self) -> Tensor:
        """The weight that the codes stand for, (out, in), float32."""
        scale_OG, zero_OG = self.steps
        codes_OGg = self.codes.reshape(*scale_OG.shape, -1)
        return ((codes_OGg - zero_OG[..., None]) * scale_OG[..., None]).flatten(1)


@dataclass(frozen=True)
class Grid:
    """How many bits, how many inputs share a scale, and whether zero is in the middle.

    Of 4 bits the codes are 0 to 15 with scales in bf16; a symmetric group maps its entry of largest size to code 0, eight
    steps from zero, which gives the scale its sign. Of 8 bits they are -127 to 127 with scales in fp32, always symmetric.
    """

    bits: int
    group: int
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        return 0 if self.bits == 4 else -127

    @property
    def highest(self) -> int:
        return 15 if self.bits == 4 else 127

    @property
    def middle(self) -> int:
        return 8 if self.bits == 4 else 0

    def grouped(self, weight_OI: Tensor) -> Tensor:
        """View a weight by its groups, (out, groups, g)."""
        return weight_OI.reshape(len(weight_OI), -1, self.group)

    def ranges(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest entry of every group, zero among them, (out, groups)."""
        low_OG, high_OG = torch.aminmax(self.grouped(weight_OI), dim=-1)
        return low_OG.clamp(max=0), high_OG.clamp(min=0)

    def steps(self, low_OG: Tensor, high_OG: Tensor) -> Steps:
        """The steps that span the ranges."""
        if self.bits == 8:
            scale_OG = torch.maximum(-low_OG, high_OG) / 127
        elif self.symmetric:
            scale_OG = torch.where(-low_OG >= high_OG, low_OG, high_OG) / -self.middle
        else:
            scale_OG = (high_OG - low_OG) / self.highest
        scale_OG = self.stored(scale_OG)
        if self.symmetric or self.bits == 8:
            return Steps(scale_OG, torch.full_like(scale_OG, self.middle))
        return Steps(scale_OG, (-low_OG / scale_OG).round().clamp(self.lowest, self.highest))

    def stored(self, scale_OG: Tensor) -> Tensor:
        """Round scales to what is stored; a group of zeros gets the scale 1."""
        if self.bits == 4:
            size_OG = scale_OG.abs().clamp(SMALLEST, LARGEST).bfloat16().half().float()
            rounded_OG = torch.where(scale_OG < 0, -size_OG, size_OG)
        else:
            rounded_OG = scale_OG
        return torch.where(scale_OG == 0, 1.0, rounded_OG)

    def nearest(self, weight_OI: Tensor, steps: Steps | None = None) -> Codes:
        """Round a weight to its nearest codes, on steps that span its own ranges where none are given."""
        steps = steps or self.steps(*self.ranges(weight_OI))
        scale_OG, zero_OG = steps
        codes_OGg = (self.grouped(weight_OI) / scale_OG[..., None] + zero_OG[..., None]).round_()
        return Codes(codes_OGg.clamp_(self.lowest, self.highest).flatten(1), steps)
