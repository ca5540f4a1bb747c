"""Linear layers whose weights are 4-bit codes, with a scale, and where asked a zero, for every group of neighbouring inputs.

weight = (code - zero) * scale. Codes are unsigned, two a byte, an even input in the low nibble; scales are bf16 numbers that
fp16 holds too, of either sign; a zero is a code, and without one it is 8. So codes, scales and zeros can leave as they are
for formats that store them like this (compressed-tensors, MatMulNBits, MLX).

One kernel computes any number of rows, so that a text gives the same bits alone and in a batch: torch's for int4, which takes
bf16 rows (with fp32 rows it is scalar code). It adds a group's zero as a bf16 number, at most 1/64 of a step beside the
exact one. Its layout of the codes depends on the processor: it is made when a layer first runs, lies beside the codes, and is
never saved. One product for q, k, v, or for gate and up, was tried on 2026-11-30 and left out: at one row it saved 9 us of 58 and 3 of
123 (576 -> 960 and 3072), at 96 rows nothing, and SmolLM2's shape decoded 2.5 times as fast as in fp32, where it does 2.6 times
with layers apart. The layout for CUDA is that of torch's own tests; no such device was at hand to run it on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_compress.methods.quantize.formats.kernels import Shape, choose
from zoo_compress.methods.quantize.formats.packed import Packed

MIDDLE = 8  # the code of zero where no zeros are stored
KERNEL_GROUPS = (256, 128, 64, 32)  # inputs that share a scale in torch's kernels
KERNEL_OUTPUTS = 16  # of which the outputs must be a multiple on a CPU
CUDA_TILES = 8  # of 16 inputs each; what torch's own tests and gpt-fast take
MULTIPLY_CPU = torch.ops.aten._weight_int4pack_mm_for_cpu.default
MULTIPLY_CUDA = torch.ops.aten._weight_int4pack_mm.default


def pack_nibbles(codes_OI: Tensor) -> Tensor:
    """Put neighbours of a row into one byte, the first in the low nibble; of an odd row the last stands alone."""
    codes_OI = F.pad(codes_OI.to(torch.uint8), (0, codes_OI.shape[1] % 2))
    return codes_OI[:, 0::2] | codes_OI[:, 1::2] << 4


def unpack_nibbles(bytes_OB: Tensor, count: int) -> Tensor:
    """Return the first `count` codes of every row, uint8."""
    return torch.stack((bytes_OB & 15, bytes_OB >> 4), dim=-1).flatten(1)[:, :count]


def widen(codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | int) -> Tensor:
    """Return the weight (out, in) that codes stand for, float32."""
    codes_OGg = codes_OI.view(*scale_OG.shape, -1).to(torch.int8)
    steps_OGg = codes_OGg - (zero_OG if isinstance(zero_OG, int) else zero_OG.to(torch.int8)[..., None])
    weight_OGg: Tensor = steps_OGg * scale_OG.float()[..., None]
    return weight_OGg.flatten(1)


class Int4Linear(Packed):
    """A Linear whose weight is 4-bit codes with one bf16 scale, and a zero where there are zeros, for `group` inputs."""

    zoo_bits: ClassVar[int] = 4
    zoo_format: ClassVar[str] = "int4"
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int4": 2}

    weight_int4: Tensor  # (out, in / 2)
    scale: Tensor  # (out, groups)
    zero: Tensor | None  # (out, groups / 2), rounded up

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        group: int = 128,
        zeros: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if in_features % 2:
            raise ValueError(f"int4 packs two weights of a row in a byte: in_features must be even, got {in_features}")
        if in_features % group:
            raise ValueError(f"group must divide in_features {in_features}, got {group}")
        self.in_features, self.out_features, self.group = in_features, out_features, group
        self.zoo_shape = Shape(out_features, in_features, group)
        groups = in_features // group
        codes_OB = torch.zeros(out_features, in_features // 2, dtype=torch.uint8, device=device)
        self.register_buffer("weight_int4", codes_OB)
        self.register_buffer("scale", torch.ones(out_features, groups, dtype=torch.bfloat16, device=device))
        zero = torch.zeros(out_features, (groups + 1) // 2, dtype=torch.uint8, device=device) if zeros else None
        self.register_buffer("zero", zero)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None
        self._kernel: tuple[Any, tuple[Tensor, Tensor, int]] | None = None  # the codes it was made of; see _made

    @classmethod
    def of(cls, codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None) -> Self:
        """Pack codes from 0 to 15, without a bias."""
        outputs, inputs = codes_OI.shape
        zeros = zero_OG is not None
        packed = cls(inputs, outputs, False, inputs // scale_OG.shape[1], zeros, device="meta")
        packed.weight_int4 = pack_nibbles(codes_OI)
        packed.scale = scale_OG.to(torch.bfloat16).contiguous()
        if zero_OG is not None:
            packed.zero = pack_nibbles(zero_OG)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        # A call of one row takes as long in Python as in the kernel, so nothing is asked of torch that need not be.
        bias_O = None if self.bias is None else self.bias.to(x.dtype)
        if choose("int4", self.zoo_shape, x, exact=self.exact) == "widened":
            return F.linear(x, self.dequantize(x.dtype), bias_O)
        layout, scales_GO2, group = self._made()
        x_TI = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        x_TI = (x_TI if x.dtype == torch.bfloat16 else x_TI.to(torch.bfloat16)).contiguous()
        y_TO: Tensor = (MULTIPLY_CPU if x.is_cpu else MULTIPLY_CUDA)(x_TI, layout, group, scales_GO2)
        if y_TO.shape[1] != self.out_features:
            y_TO = y_TO[:, : self.out_features]
        if x.dtype != torch.bfloat16:
            y_TO = y_TO.to(x.dtype)
        if bias_O is not None:
            y_TO = y_TO + bias_O
        return y_TO if x.dim() == 2 else y_TO.reshape(*x.shape[:-1], self.out_features)

    def codes(self) -> Tensor:
        """Return the codes (out, in), uint8."""
        return unpack_nibbles(self.weight_int4, self.in_features)

    def zeros(self) -> Tensor | int:
        """Return the zeros (out, groups), uint8, or the one that stands for all."""
        return MIDDLE if self.zero is None else unpack_nibbles(self.zero, self.scale.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in) in floating point."""
        return widen(self.codes(), self.scale, self.zeros()).to(dtype)

    def _made(self) -> tuple[Tensor, Tensor, int]:
        """What torch's kernel reads, made where it is not there yet, and its group."""
        codes_OB = self._buffers["weight_int4"]
        if self._kernel is None or self._kernel[0] is not codes_OB:
            with torch.inference_mode(False), torch.no_grad():
                layout, scales_GO2 = self._layout()
                self._kernel = (codes_OB, (layout, scales_GO2, self.in_features // len(scales_GO2)))
        return self._kernel[1]

    def _layout(self) -> tuple[Tensor, Tensor]:
        """The codes as the kernel of this device reads them, and what it multiplies them by and adds: (groups, out, 2)."""
        group = next(size for size in KERNEL_GROUPS if self.group % size == 0)
        scale_OG = self.scale.repeat_interleave(self.group // group, dim=1)
        zero = self.zeros()
        shift_OG = (MIDDLE - zero.float() if isinstance(zero, Tensor) else torch.zeros(())) * self.scale.float()
        shift_OG = shift_OG.bfloat16().repeat_interleave(self.group // group, dim=1)
        scales_GO2 = torch.stack((scale_OG.t(), shift_OG.t()), dim=-1)
        if not self.weight_int4.is_cpu:  # there the even input is in the high nibble
            swapped = self.weight_int4 << 4 | self.weight_int4 >> 4
            return torch.ops.aten._convert_weight_to_int4pack(swapped, CUDA_TILES), scales_GO2.contiguous()
        more = -self.out_features % KERNEL_OUTPUTS
        codes_OI = F.pad(self.codes().int(), (0, 0, 0, more))
        layout = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI, 1)
        return layout, F.pad(scales_GO2, (0, 0, 0, more)).contiguous()

    def forget_layout(self) -> None:
        self._kernel = None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.forget_layout()  # codes may have been written into those that are there

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}  # a copy makes its own

    def extra_repr(self) -> str:
        size = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{size}, group={self.group}, zeros={self.zero is not None}"
