"""Layers whose weights are int8, one fp32 scale a row, or where asked one for every group of neighbouring inputs.

Symmetric, one scale per output channel, absmax / 127 (Krishnamoorthi 2018, arXiv:1806.08342, section 3).

Which kernel multiplies is in `kernels.py`. Scales by group have none: such layers are widened at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.anatomy.modules import weight_out_in
from zoo.tensors.alignment import aligned
from zoo_compress.methods.quantize.formats.kernels import Shape, choose
from zoo_compress.methods.quantize.formats.packed import Packed, check_finite, copy_bias

ONES: dict[int, Tensor] = {}  # see bf16_ones
WIDEN_ELEMENTS = 1 << 20  # weights widened at a time: 2 or 4 MiB, which stay in cache and bound the extra memory


def pack_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 in [-127, 127] and return it with its fp32 scale."""
    weight_OI = weight_OI.detach()
    check_finite(weight_OI)
    int8_OI = weight_OI.new_empty(weight_OI.shape, dtype=torch.int8)
    scale_O = weight_OI.new_empty(len(weight_OI), dtype=torch.float32)
    rows = max(1, WIDEN_ELEMENTS // max(1, weight_OI.shape[1]))
    for start in range(0, len(weight_OI), rows):  # so that a token table takes no copy in fp32
        block_OI = weight_OI[start : start + rows].float()
        largest_O = block_OI.abs().amax(dim=1) / 127
        scale_O[start : start + rows] = largest_O = torch.where(largest_O == 0, 1.0, largest_O)
        int8_OI[start : start + rows] = (block_OI / largest_O[:, None]).round_().clamp_(-127, 127)
    return int8_OI, scale_O


def bf16_ones(count: int) -> Tensor:
    """Unit scales for the kernel, since it takes them in bf16 and ours are applied afterwards in fp32."""
    if count not in ONES:
        with torch.inference_mode(False):
            ones_O = torch.ones(count, dtype=torch.bfloat16)
        if type(ones_O) is not Tensor:  # of a dry run, which has no values to keep
            return ones_O
        ONES[count] = ones_O
    return ONES[count]


def int8_linear_bf16(x_TI: Tensor, int8_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Multiply in torch's int8 kernel: bf16 inputs and outputs, fp32 accumulation, fp32 scales."""
    x_TI = aligned(x_TI.to(torch.bfloat16))
    y_TO = torch._weight_int8pack_mm(x_TI, aligned(int8_OI), bf16_ones(int8_OI.size(0)))
    return y_TO * scale_O


def int8_linear_widened(x_TI: Tensor, int8_OI: Tensor, scale_O: Tensor, sums: torch.dtype | None = None) -> Tensor:
    """Multiply in the dtype of x, widening a block of int8 rows at a time.

    Args:
        sums: dtype that sums are rounded to before they are scaled.
    """
    rows = max(1, WIDEN_ELEMENTS // max(1, int8_OI.shape[1]))
    blocks = [F.linear(x_TI, block.to(x_TI.dtype)).to(sums or x_TI.dtype) for block in torch.split(int8_OI, rows)]
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)) * scale_O


class Int8Linear(Packed):
    """A Linear whose weight is int8 with one fp32 scale per output channel, or several, of groups of neighbouring inputs."""

    zoo_bits: ClassVar[int] = 8
    zoo_format: ClassVar[str] = "int8"
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int8": 1}

    weight_int8: Tensor
    scale: Tensor  # (out,), or (out, groups)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        groups: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.zoo_shape = Shape(out_features, in_features, in_features // groups)
        self.register_buffer("weight_int8", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        shape = (out_features,) if groups == 1 else (out_features, groups)
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module) -> Self:
        """Pack a Linear, or a transformers Conv1D, whose weight is (in, out)."""
        weight_OI = weight_out_in(linear)
        out_features, in_features = weight_OI.shape
        packed = cls(in_features, out_features, bias=False, device="meta")
        packed.weight_int8, packed.scale = pack_rows(weight_OI)
        packed.weight_int8 = packed.weight_int8.contiguous()
        packed.bias = copy_bias(linear)
        return packed

    @classmethod
    def of(cls, codes_OI: Tensor, scale_OG: Tensor) -> Self:
        """Pack codes from -127 to 127 with their scales (out, groups), without a bias."""
        outputs, inputs = codes_OI.shape
        packed = cls(inputs, outputs, bias=False, groups=scale_OG.shape[1], device="meta")
        packed.weight_int8 = codes_OI.to(torch.int8).contiguous()
        packed.scale = scale_OG.reshape(packed.scale.shape).contiguous()
        return packed

    def forward(self, x: Tensor) -> Tensor:
        # Tiny layers spend more time in Python than in the kernel, so this looks each attribute up once.
        int8_OI, scale_O, bias_O = self.weight_int8, self.scale, self.bias
        x_TI = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        kernel = choose("int8", self.zoo_shape, x_TI, exact=self.exact)
        if kernel == "int8pack":
            y_TO = int8_linear_bf16(x_TI, int8_OI, scale_O)
        elif kernel == "widened to bf16":
            y_TO = int8_linear_widened(x_TI.to(torch.bfloat16), int8_OI, scale_O)
        elif kernel == "widened, rounding to bf16":
            y_TO = int8_linear_widened(x_TI.to(torch.bfloat16).float(), int8_OI, scale_O, torch.bfloat16)
        elif x.is_cpu and scale_O.dim() == 1:
            # Half precision products are slow on most CPUs and int8 sums overflow fp16, so both are done in fp32.
            wide = x_TI if x.dtype in (torch.float32, torch.float64) else x_TI.float()
            y_TO = int8_linear_widened(wide, int8_OI, scale_O)
        else:
            y_TO = F.linear(x_TI, self.dequantize(x.dtype))
        if bias_O is not None:
            y_TO = y_TO + bias_O
        if y_TO.dtype != x.dtype:
            y_TO = y_TO.to(x.dtype)
        return y_TO if x.dim() == 2 else y_TO.view(*x.shape[:-1], self.out_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in) in floating point."""
        scale_OG1 = self.scale.reshape(self.out_features, -1, 1)
        weight_OGg: Tensor = self.weight_int8.reshape(self.out_features, scale_OG1.shape[1], -1) * scale_OG1
        return weight_OGg.flatten(1).to(dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(Packed):
    """An Embedding whose rows are int8, each with one fp32 scale."""

    zoo_bits: ClassVar[int] = 8
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int8": 1}

    weight_int8: Tensor
    scale: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.dtype = dtype  # of the output; the packed rows cannot tell
        self.register_buffer("weight_int8", torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(num_embeddings, dtype=torch.float32, device=device))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> Self:
        """Pack an Embedding; its rows come out in the dtype they had."""
        weight_VD = embedding.weight
        vocabulary, width = weight_VD.shape
        packed = cls(vocabulary, width, device="meta", dtype=weight_VD.dtype)
        packed.weight_int8, packed.scale = pack_rows(weight_VD)
        return packed

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight_int8)
        return (rows * self.scale[ids][..., None]).to(self.dtype)

    def tie(self, head: Int8Linear) -> Int8Linear:
        """Make a head share these very buffers; call it again after loading or moving, which unshare buffers."""
        head.weight_int8, head.scale = self.weight_int8, self.scale
        return head

    def tied_head(self) -> Int8Linear:
        """Return a head without bias that shares these very buffers."""
        return self.tie(Int8Linear(self.embedding_dim, self.num_embeddings, bias=False, device="meta"))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (vocabulary, width) in floating point."""
        return (self.weight_int8 * self.scale[:, None]).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(dtype)` leaves the scales alone but should still change what comes out.
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.scale.device))
        self.dtype = probe.dtype if probe.is_floating_point() else self.dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
