"""Linear layers that multiply whole numbers: int8 weights, one scale a row, and inputs rounded to int8, one scale a token.

Symmetric and dynamic, absmax / 127 of each token as it comes (ZeroQuant, Yao et al. 2022, arXiv:2206.01861, section 4.1). Sums of
whole numbers are exact in any order, so a token gives the same bits whatever it is computed with, and on every machine.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.kernels import choose

EXACT = 1024  # inputs whose products, at most 127 * 127 each, fp32 adds up without rounding


class W8A8Linear(Int8Linear):
    """An Int8Linear that rounds what it reads to int8 as well, with a scale for each token."""

    zoo_format: ClassVar[str] = "w8a8"

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        size_T1 = x_TI.detach().abs().amax(1, keepdim=True).float() / 127
        scale_T1 = torch.where(size_T1 == 0, 1.0, size_T1)
        codes_TI = (x_TI.detach().float() / scale_T1).round_()
        if x.requires_grad and torch.is_grad_enabled():  # as if nothing had been rounded
            straight_TI = x_TI + (codes_TI * scale_T1 - x_TI).detach().to(x.dtype)
            y_TO = F.linear(straight_TI, self.dequantize(x.dtype))
        else:
            multiply = torch._int_mm if choose("w8a8", self.zoo_shape, x_TI, exact=False) == "int_mm" else widened_mm
            y_TO = multiply(codes_TI.to(torch.int8), self.weight_int8.t()) * scale_T1 * self.scale
        y_TO = y_TO if self.bias is None else y_TO + self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)


def widened_mm(codes_TI: Tensor, codes_IO: Tensor) -> Tensor:
    """The product of int8 matrices, int32, multiplied in fp32 so many inputs at a time that nothing is rounded."""
    sums_TO = torch.zeros(len(codes_TI), codes_IO.shape[1], dtype=torch.int32, device=codes_TI.device)
    for start in range(0, len(codes_IO), EXACT):
        some = slice(start, start + EXACT)
        sums_TO += (codes_TI[:, some].float() @ codes_IO[some].float()).int()
    return sums_TO
