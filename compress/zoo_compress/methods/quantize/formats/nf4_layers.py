"""Linear layers in 4-bit NF4: the 16 normal-float levels in blocks of 64, scales optionally quantised again.

QLoRA (arXiv:2305.14314, section 3), run by bitsandbytes (MIT licence).

Where its kernel for CPUs runs (`kernels.py`), a layer holds its codes in the order of that kernel, in place of the stored one: a
permutation of nibbles, so the stored codes come back to the bit when they are asked for. The scales stay, since the kernel's
are rounded to bf16. One kernel takes any number of rows, so that a text gives the same bits alone and in a batch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.anatomy.modules import weight_out_in
from zoo.tensors.alignment import aligned
from zoo_compress.methods.quantize.formats.kernels import Shape, choose
from zoo_compress.methods.quantize.formats.lanes import from_lanes, to_lanes
from zoo_compress.methods.quantize.formats.packed import Packed, check_finite, copy_bias


class NF4Linear(Packed):
    """A Linear whose weight is 4-bit NF4, run by bitsandbytes."""

    zoo_bits: ClassVar[int] = 4
    zoo_format: ClassVar[str] = "nf4"
    zoo_packed: ClassVar[dict[str, int]] = {"weight_nf4": 2}

    weight_nf4: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_code: Tensor
    nested_offset: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        blocksize: int = 64,
        nested: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if in_features % 2:
            raise ValueError(f"NF4 packs two weights per byte along a row: in_features must be even, got {in_features}")
        if blocksize not in (64, 128, 256, 512, 1024, 2048, 4096):
            raise ValueError(f"blocksize must be a power of two from 64 to 4096, got {blocksize}")
        self.in_features = in_features
        self.out_features = out_features
        self.blocksize = blocksize
        self.nested = nested
        self.zoo_shape = Shape(out_features, in_features, blocksize)
        self._lanes: tuple[Tensor, Tensor, Tensor] | None = None  # codes, scales and levels as the kernel reads them
        blocks = math.ceil(out_features * in_features / blocksize)
        absmax_dtype = torch.uint8 if nested else torch.float32
        codes = torch.zeros(out_features * in_features // 2, 1, dtype=torch.uint8, device=device)
        self.register_buffer("weight_nf4", codes)
        self.register_buffer("absmax", torch.zeros(blocks, dtype=absmax_dtype, device=device))
        if nested:
            # bitsandbytes always quantises the block scales in blocks of 256 to a 256-entry code.
            self.register_buffer("nested_absmax", torch.zeros(math.ceil(blocks / 256), device=device))
            self.register_buffer("nested_code", torch.zeros(256, device=device))
            self.register_buffer("nested_offset", torch.zeros((), device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Module, blocksize: int = 64, nested: bool = False) -> Self:
        """Pack a Linear, or a transformers Conv1D, whose weight is (in, out)."""
        from bitsandbytes import functional as bnb

        weight_OI = weight_out_in(linear).float().contiguous()
        check_finite(weight_OI)
        out_features, in_features = weight_OI.shape
        packed = cls(in_features, out_features, bias=False, blocksize=blocksize, nested=nested, device="meta")
        packed.weight_nf4, state = bnb.quantize_4bit(
            weight_OI, blocksize=blocksize, compress_statistics=nested, quant_type="nf4"
        )
        packed.absmax = state.absmax
        if nested:
            packed.nested_absmax = state.state2.absmax
            packed.nested_code = state.state2.code.clone()  # bitsandbytes shares one among all layers
            packed.nested_offset = state.offset
        packed.bias = copy_bias(linear)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        kernel = choose("nf4", self.zoo_shape, x, exact=self.exact or self.training)
        if kernel == "gemv_4bit":
            return self._multiply(x)
        compute = x if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.float()
        bias_O = None if self.bias is None else self.bias.to(compute.dtype)
        if kernel == "widened":  # what bitsandbytes does here as well, but for the shape it decodes in (see dequantize)
            return F.linear(compute, self.dequantize(compute.dtype), bias_O).to(x.dtype)
        import bitsandbytes as bnb

        shape = torch.Size((self.out_features, self.in_features))
        y: Tensor = bnb.matmul_4bit(
            compute.contiguous(), self.weight_nf4, self._quant_state(shape, x.dtype), bias=bias_O
        )
        return y.to(x.dtype)

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply in bitsandbytes' kernel: bf16 inputs, scales and outputs."""
        lanes_OB, absmax_ZO, levels = self._in_lanes()
        x_TI = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        x_TI = aligned(x_TI if x.dtype == torch.bfloat16 else x_TI.to(torch.bfloat16))
        shape = (self.out_features, self.in_features)
        y: Tensor = torch.ops.bitsandbytes.gemv_4bit.default(x_TI, lanes_OB, shape, absmax_ZO, levels, self.blocksize)
        if x.dtype != torch.bfloat16:
            y = y.to(x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def _in_lanes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and levels as the kernel reads them; the stored order goes when they are made."""
        if self._lanes is None or self._buffers["weight_nf4"] is not None:
            from bitsandbytes import functional as bnb

            with torch.inference_mode(False), torch.no_grad():
                absmax_Z = self.absmax
                if self.nested:
                    state = bnb.QuantState(
                        absmax=self.nested_absmax, code=self.nested_code, blocksize=256, dtype=torch.float32
                    )
                    absmax_Z = bnb.dequantize_blockwise(absmax_Z, state) + self.nested_offset
                absmax_ZO = absmax_Z.view(self.out_features, -1).t().to(torch.bfloat16).contiguous()
                levels = bnb.get_4bit_type("nf4", device=torch.device("cpu"))
                self._lanes = to_lanes(self.weight_nf4, self.out_features), absmax_ZO, levels
                self._buffers["weight_nf4"] = None
        return self._lanes

    def __getattr__(self, name: str) -> Any:
        """The stored codes are made again when they are asked for; everything else is where modules keep it."""
        if name == "weight_nf4":
            self.restore()
        return super().__getattr__(name)

    def restore(self) -> None:
        """Put the codes back into the order in which they are stored."""
        lanes = self.__dict__.get("_lanes")
        if lanes is not None and self._buffers["weight_nf4"] is None:
            with torch.inference_mode(False), torch.no_grad():
                self._buffers["weight_nf4"] = from_lanes(lanes[0])
        self._lanes = None

    def _save_to_state_dict(self, *args: Any) -> None:
        self.restore()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **options: Any) -> Self:
        self.restore()
        return super()._apply(*args, **options)

    def _quant_state(self, shape: torch.Size, dtype: torch.dtype) -> Any:
        from bitsandbytes.functional import QuantState as kind

        state2 = None
        if self.nested:
            state2 = kind(absmax=self.nested_absmax, code=self.nested_code, blocksize=256, dtype=torch.float32)
        return kind(
            absmax=self.absmax,
            shape=shape,
            blocksize=self.blocksize,
            quant_type="nf4",
            dtype=dtype,
            offset=self.nested_offset if self.nested else None,
            state2=state2,
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in) in floating point.

        Decoded as one long row: with AVX-512, bitsandbytes 0.50 takes the wrong scales for rows that are not whole blocks.
        """
        from bitsandbytes import functional as bnb

        state = self._quant_state(torch.Size((self.out_features * self.in_features,)), torch.float32)
        weight: Tensor = bnb.dequantize_4bit(self.weight_nf4, state)
        return weight.reshape(self.out_features, self.in_features).to(dtype)

    def extra_repr(self) -> str:
        size = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{size}, blocksize={self.blocksize}, nested={self.nested}"
