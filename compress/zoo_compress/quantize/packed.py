"""Linear and embedding layers that are stored packed and run packed: int8 per row, and 4-bit NF4.

int8: symmetric, one scale per output channel, absmax / 127 (Krishnamoorthi 2018, arXiv:1806.08342, section 3).
NF4: the 16 normal-float levels in blocks of 64, scales optionally quantised again (QLoRA, arXiv:2305.14314,
section 3), run by bitsandbytes (MIT licence).

Which int8 kernel: time relative to an fp32 Linear, torch 2.15 on 2 AVX2 cores, same weight every call:

    576 -> 1536             1 row   16 rows   64 rows   256 rows
    bf16 rows, int8 kernel   0.42     0.96      1.23      1.64     rounds inputs and outputs to 8 bits
    int8 widened to fp32     2.01     1.30      1.02      0.93     exact to fp32 rounding
    fp32 rows, int8 kernel   2.32    11.2      19.6      29.2      not vectorised by torch, unused

So a few rows (decoding) take the first, more rows (prompts, evaluation) the second.
"""

# T rows (batch and sequence flattened), I in features, O out features, V vocabulary, D width, Z blocks of 4-bit codes

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.anatomy.modules import weight_out_in
from zoo.tensors.alignment import aligned  # the int8 kernel loads aligned vectors

WIDEN_ELEMENTS = 1 << 20  # weights widened to float at a time: 4 MiB, which stays in cache and bounds the extra memory


def pack_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 in [-127, 127] and return it with its fp32 scale."""
    weight_OI = weight_OI.detach().float()
    check_finite(weight_OI)
    scale_O = weight_OI.abs().amax(dim=1) / 127
    scale_O = torch.where(scale_O == 0, 1.0, scale_O)
    int8_OI = (weight_OI / scale_O[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return int8_OI, scale_O


def check_finite(weight_OI: Tensor) -> None:
    """Raise ValueError naming the first row that holds a nan or an infinity."""
    bad_O = (~torch.isfinite(weight_OI)).sum(dim=1)
    if not bad_O.any():
        return
    row = int(bad_O.nonzero()[0])
    raise ValueError(
        f"cannot quantise: row {row} of the weight has {int(bad_O[row])} non-finite values (nan or infinity), "
        f"{int((bad_O > 0).sum())} of {len(bad_O)} rows are affected. Repair or reload the weight first."
    )


def copy_bias(module: nn.Module) -> nn.Parameter | None:
    """Copy a module's bias, which stays in floating point."""
    bias_O = module.bias
    if not isinstance(bias_O, Tensor):
        return None
    return nn.Parameter(bias_O.detach().clone(), requires_grad=bias_O.requires_grad)


@functools.cache
def bf16_ones(count: int) -> Tensor:
    """Unit scales for the kernel, since it takes them in bf16 and ours are applied afterwards in fp32."""
    with torch.inference_mode(False):
        return torch.ones(count, dtype=torch.bfloat16)


def int8_linear_bf16(x_TI: Tensor, int8_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Multiply in torch's int8 kernel: bf16 inputs and outputs, fp32 accumulation, fp32 scales."""
    x_TI = aligned(x_TI.to(torch.bfloat16))
    y_TO = torch._weight_int8pack_mm(x_TI, aligned(int8_OI), bf16_ones(int8_OI.size(0)))
    return y_TO * scale_O


def int8_linear_widened(x_TI: Tensor, int8_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Multiply in the dtype of x, widening a block of int8 rows at a time."""
    rows = max(1, WIDEN_ELEMENTS // max(1, int8_OI.shape[1]))
    if rows >= len(int8_OI):
        return F.linear(x_TI, int8_OI.to(x_TI.dtype)) * scale_O
    y_TO = x_TI.new_empty(len(x_TI), len(int8_OI))
    for start in range(0, len(int8_OI), rows):
        block = slice(start, start + rows)
        y_TO[:, block] = F.linear(x_TI, int8_OI[block].to(x_TI.dtype))
    return y_TO * scale_O


class Packed(nn.Module):
    """What the packed layers share: scales stay fp32 in `.half()` and the like, packed codes stay aligned on load."""

    zoo_bits: ClassVar[int]
    zoo_packed: ClassVar[
        dict[str, int]
    ]  # packed buffer -> weights per stored entry; zoo.model.model counts parameters by it

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                # A rounded scale would change every weight of its row. A meta tensor has no values to keep.
                kept = torch.empty_like(new, dtype=old.dtype) if old.is_meta else old.to(new.device)
                self._buffers[name] = kept
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                self._buffers[name] = aligned(buffer)


class Int8Linear(Packed):
    """A Linear whose weight is int8 with one fp32 scale per output channel."""

    zoo_bits: ClassVar[int] = 8
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int8": 1}
    # Up to this many rows the bf16 kernel is the faster one (see the table above). 0 keeps every call exact.
    decode_rows: ClassVar[int] = 16

    weight_int8: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight_int8", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32, device=device))
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

    def forward(self, x: Tensor) -> Tensor:
        # Tiny layers spend more time in Python than in the kernel, so this looks each attribute up once.
        int8_OI, scale_O, bias_O = self.weight_int8, self.scale, self.bias
        x_TI = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if self._decoding(x_TI):
            y_TO = int8_linear_bf16(x_TI, int8_OI, scale_O)
        elif x.is_cpu:
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

    def _decoding(self, x_TI: Tensor) -> bool:
        # The kernel reads 16 weights at a time without checking the end of a row, and has no gradient.
        return (
            0 < x_TI.numel() <= self.decode_rows * self.in_features
            and self.in_features % 16 == 0
            and x_TI.is_cpu
            and x_TI.dtype != torch.float64
            and not (x_TI.requires_grad and torch.is_grad_enabled())
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in) in floating point."""
        return (self.weight_int8 * self.scale[:, None]).to(dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Conv2d(Packed):
    """A Conv2d whose weight is int8 with one fp32 scale per output channel; it is widened at each call."""

    zoo_bits: ClassVar[int] = 8
    zoo_packed: ClassVar[dict[str, int]] = {"weight_int8": 1}

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Make an empty layer of the shape of `conv`, on the meta device."""
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"cannot quantise a convolution padded with {conv.padding_mode!r}: only zeros are supported"
            )
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.register_buffer("weight_int8", torch.empty_like(conv.weight, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(conv.out_channels, device="meta"))
        self.bias: nn.Parameter | None = None

    @classmethod
    def like(cls, conv: Any, *, empty: bool) -> Self:
        """Pack a Conv2d without its bias, or make an empty layer on its device."""
        packed = cls(conv)
        if empty:
            return packed.to_empty(device=conv.weight.device)
        int8_OI, packed.scale = pack_rows(conv.weight.flatten(1))
        packed.weight_int8 = int8_OI.view(conv.weight.shape)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        bias_O = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.dequantize(x.dtype), bias_O, self.stride, self.padding, self.dilation, self.groups)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight (out, in / groups, height, width) in floating point."""
        return (self.weight_int8 * self.scale[:, None, None, None]).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, groups={self.groups}"


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


class NF4Linear(Packed):
    """A Linear whose weight is 4-bit NF4, run by bitsandbytes."""

    zoo_bits: ClassVar[int] = 4
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
        compute = x if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x.float()
        bias_O = None if self.bias is None else self.bias.to(compute.dtype)
        if x.is_cpu:  # what bitsandbytes does here as well, but for the shape it decodes in (see dequantize)
            return F.linear(compute, self.dequantize(compute.dtype), bias_O).to(x.dtype)
        import bitsandbytes as bnb

        shape = torch.Size((self.out_features, self.in_features))
        y: Tensor = bnb.matmul_4bit(
            compute.contiguous(), self.weight_nf4, self._quant_state(shape, x.dtype), bias=bias_O
        )
        return y.to(x.dtype)

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
