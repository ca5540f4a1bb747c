"""Convolutions whose weights are codes; they are widened at each call.

A weight is stored as the matrix (out, in / groups * height * width) that multiplies patches of the input, by the same codes, scales
and zeros as that of a linear layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.anatomy.modules import weight_out_in
from zoo_compress.methods.quantize.formats.int4_layers import MIDDLE, pack_nibbles, unpack_nibbles, widen
from zoo_compress.methods.quantize.formats.int8_layers import pack_rows
from zoo_compress.methods.quantize.formats.packed import Packed


def weight_matrix(layer: nn.Module) -> Tensor:
    """What a linear layer multiplies its inputs with, and a convolution patches of them: (out, in)."""
    return layer.weight.detach().flatten(1) if isinstance(layer, nn.Conv2d) else weight_out_in(layer)


class PackedConv2d(Packed):
    """A Conv2d that computes with `dequantize()`."""

    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over sizes and how the kernel moves."""
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"cannot quantise a convolution padded with {conv.padding_mode!r}: only zeros are supported"
            )
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        bias_O = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.dequantize(x.dtype), bias_O, self.stride, self.padding, self.dilation, self.groups)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in / groups, height, width) in floating point."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, groups={self.groups}"


class Int8Conv2d(PackedConv2d):
    """A Conv2d whose weight is int8 with one fp32 scale per output channel, or several, of groups of neighbours in its matrix."""

    zoo_bits: ClassVar[int] = 8
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int8": 1}

    weight_int8: Tensor  # (out, in / groups, height, width)
    scale: Tensor  # (out,), or (out, scales)

    def __init__(self, conv: nn.Conv2d, scales: int = 1) -> None:
        """Make an empty layer of the shape of `conv`, on the meta device."""
        super().__init__(conv)
        shape = (conv.out_channels,) if scales == 1 else (conv.out_channels, scales)
        self.register_buffer("weight_int8", torch.empty_like(conv.weight, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(shape, device="meta"))

    @classmethod
    def like(cls, conv: Any, *, empty: bool, scales: int = 1) -> Self:
        """Round a Conv2d by rows, without its bias, or make an empty layer on its device."""
        packed = cls(conv, scales)
        if empty:
            return packed.to_empty(device=conv.weight.device)
        int8_OI, packed.scale = pack_rows(conv.weight.flatten(1))
        packed.weight_int8 = int8_OI.view(conv.weight.shape)
        return packed

    @classmethod
    def of(cls, conv: nn.Conv2d, codes_OI: Tensor, scale_OG: Tensor) -> Self:
        """Pack codes from -127 to 127 with their scales (out, scales), without a bias."""
        packed = cls(conv, scale_OG.shape[1])
        packed.weight_int8 = codes_OI.to(torch.int8).view(conv.weight.shape).contiguous()
        packed.scale = scale_OG.reshape(packed.scale.shape).contiguous()
        return packed

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale_OG1 = self.scale.reshape(self.out_channels, -1, 1)
        weight_OGg: Tensor = self.weight_int8.reshape(self.out_channels, scale_OG1.shape[1], -1) * scale_OG1
        return weight_OGg.view(self.weight_int8.shape).to(dtype)


class Int4Conv2d(PackedConv2d):
    """A Conv2d whose weight is 4-bit codes, stored as those of an Int4Linear are."""

    zoo_bits: ClassVar[int] = 4
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int4": 2}

    weight_int4: Tensor  # (out, in / groups * height * width / 2)
    scale: Tensor  # (out, scales)
    zero: Tensor | None  # (out, scales / 2), rounded up

    def __init__(self, conv: nn.Conv2d, scales: int, zeros: bool) -> None:
        """Make an empty layer of the shape of `conv`, on the meta device."""
        super().__init__(conv)
        self.inputs, outputs = conv.weight[0].numel(), conv.out_channels
        self.register_buffer("weight_int4", torch.empty(outputs, self.inputs // 2, dtype=torch.uint8, device="meta"))
        self.register_buffer("scale", torch.empty(outputs, scales, dtype=torch.bfloat16, device="meta"))
        zero = torch.empty(outputs, (scales + 1) // 2, dtype=torch.uint8, device="meta") if zeros else None
        self.register_buffer("zero", zero)

    @classmethod
    def of(cls, conv: nn.Conv2d, codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None) -> Self:
        """Pack codes from 0 to 15, without a bias."""
        packed = cls(conv, scale_OG.shape[1], zero_OG is not None)
        packed.weight_int4 = pack_nibbles(codes_OI)
        packed.scale = scale_OG.to(torch.bfloat16).contiguous()
        if zero_OG is not None:
            packed.zero = pack_nibbles(zero_OG)
        return packed

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        zero_OG = MIDDLE if self.zero is None else unpack_nibbles(self.zero, self.scale.shape[1])
        weight_OI = widen(unpack_nibbles(self.weight_int4, self.inputs), self.scale, zero_OG)
        return weight_OI.view(self.out_channels, -1, *self.kernel_size).to(dtype)
