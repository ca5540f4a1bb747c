"""Which kernel multiplies with packed weights: a table, read for the processor at hand when a layer first runs.

Of a format's rows the first counts whose processor is here, whose shapes fit, and that takes the rows of the call. Nothing of it
is stored in an artifact: a plan and `results.json` say what the machine at hand runs.

`measured` is how many times as fast as an fp32 Linear the kernel was at 576 -> 1536 and at 2048 -> 8192, by the rows of a call:
one thread of an AMD EPYC with avx512_bf16 (family 25, model 17), printed by `benchmarks/layer_kernels.py` on 2026-11-30 while
other work ran beside it. torch's int4 kernel multiplies in fp32 what it widened: on another processor with avx512_bf16 it alone gave
8.6 and 7.0 at one row and 1.8 to 2.0 at 96, where this one gives 6.2 and 4.1, and 1.0 to 1.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo_compress.methods.quantize.formats.lanes import to_lanes


class Shape(NamedTuple):
    """Sizes of a packed Linear; `group` inputs share a scale."""

    outputs: int
    inputs: int
    group: int


@dataclass(frozen=True)
class Kernel:
    """A way to multiply with the weights of one format, and where it is taken."""

    format: str
    name: str
    device: str = ""  # "" where it runs on any
    processor: str = ""  # what of PROCESSORS it takes
    fits: Callable[[Shape], bool] = lambda shape: True
    rows: int | None = None  # at most, in one call
    rounds: bool = False  # takes bf16 rows and gives bf16 sums, without a gradient
    measured: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def takes(self, x: Tensor, exact: bool) -> bool:
        """Whether it multiplies these rows."""
        if self.rows is not None and x.numel() > self.rows * x.shape[-1]:
            return False
        if not self.rounds:
            return True
        wanted = exact or x.dtype == torch.float64 or (x.requires_grad and torch.is_grad_enabled())
        return not wanted and x.numel() > 0


@cache
def has_bf16_products() -> bool:
    """Whether the processor multiplies numbers in bf16 without widening them first."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def has_tinygemm() -> bool:
    """Whether the GPU runs torch's int4 kernel."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


@cache
def has_gemv_4bit() -> bool:
    """Whether bitsandbytes' kernel for NF4 runs here, and reads codes in the order that ours are put into."""
    from bitsandbytes import functional as bnb

    convert = getattr(bnb, "_convert_weight_packed_for_cpu", None)
    if convert is None or not bnb.has_avx512bf16():
        return False
    codes = torch.arange(64 * 32, dtype=torch.int32).mul(37).remainder(256).to(torch.uint8).view(-1, 1)
    scales = torch.arange(64).float()
    state = bnb.QuantState(absmax=scales, shape=torch.Size((64, 64)), blocksize=64, quant_type="nf4")
    lanes, state = convert(codes, state)
    return torch.equal(lanes, to_lanes(codes, 64)) and torch.equal(state.absmax.flatten().float(), scales)


@cache
def has_int8_products() -> bool:
    """Whether torch multiplies int8 matrices here without a sum that overflows, as it does on processors before VNNI."""
    if not torch.cpu._is_vnni_supported():
        return False
    codes = torch.tensor([127, -127], dtype=torch.int8).repeat(64, 32)
    wanted = codes.int() @ codes.int().t()
    return torch.equal(torch._int_mm(codes, codes.t()), wanted)


PROCESSORS: dict[str, Callable[[], bool]] = {
    "": lambda: True,
    "bf16 products": has_bf16_products,
    "int8 products": has_int8_products,
    "compute capability 8.0": has_tinygemm,
    "bitsandbytes with avx512_bf16": has_gemv_4bit,
}


def _by_row(shape: Shape) -> bool:
    return shape.group == shape.inputs


def _by_row_of_16(shape: Shape) -> bool:
    return _by_row(shape) and shape.inputs % 16 == 0  # int8pack reads 16 weights at a time without checking a row's end


TABLE = (
    Kernel(
        "int4",
        "int4pack",
        "cpu",
        fits=lambda shape: shape.group % 32 == 0,
        rounds=True,
        measured={1: (4.2, 4.4), 16: (1.7, 3.1), 96: (1.1, 1.4)},
    ),
    Kernel(
        "int4",
        "tinygemm",
        "cuda",
        "compute capability 8.0",
        fits=lambda shape: shape.group % 32 == 0 and shape.outputs % 8 == 0 and shape.inputs % 128 == 0,
        rounds=True,
    ),
    Kernel("int4", "widened", measured={1: (0.1, 0.05), 16: (0.2, 0.2), 96: (0.6, 0.4)}),
    Kernel(
        "int8",
        "int8pack",
        "cpu",
        "bf16 products",
        fits=_by_row_of_16,
        rows=8,
        rounds=True,
        measured={1: (2.2, 2.2), 16: (1.1, 1.9), 96: (0.8, 0.8)},
    ),
    Kernel(
        "int8",
        "widened to bf16",
        "cpu",
        "bf16 products",
        fits=_by_row,
        rounds=True,
        measured={1: (1.2, 0.8), 16: (1.4, 2.7), 96: (1.8, 2.4)},
    ),
    Kernel("int8", "int8pack", "cpu", fits=_by_row_of_16, rows=16, rounds=True),  # 2.4, 1.0 and .8 times on AVX2
    # so that a row alone, which int8pack rounds, comes out as among others
    Kernel(
        "int8",
        "widened, rounding to bf16",
        "cpu",
        fits=_by_row_of_16,
        rounds=True,
        measured={1: (1.6, 0.8), 16: (1.1, 1.5), 96: (0.9, 1.2)},
    ),
    Kernel("int8", "widened", measured={1: (1.8, 0.8), 16: (1.1, 1.4), 96: (0.9, 1.1)}),
    Kernel("w8a8", "int_mm", "cpu", "int8 products"),
    Kernel("w8a8", "widened"),
    Kernel(
        "nf4",
        "gemv_4bit",  # bitsandbytes' name; it takes any number of rows
        "cpu",
        "bitsandbytes with avx512_bf16",
        fits=lambda shape: shape.outputs % 32 == 0 and shape.inputs % shape.group == 0,
        rounds=True,
        measured={1: (3.0, 3.7), 16: (2.0, 4.1), 96: (1.5, 2.2)},
    ),
    Kernel("nf4", "widened", "cpu", measured={1: (0.6, 0.1), 16: (0.8, 0.3), 96: (0.8, 0.6)}),
    Kernel("nf4", "matmul_4bit"),
)


@cache
def fitting(format: str, shape: Shape, device: str) -> tuple[Kernel, ...]:
    """The kernels of a format that run here on layers of a shape; the first that takes the rows of a call is taken."""
    rows = (kernel for kernel in TABLE if kernel.format == format and kernel.device in ("", device))
    return tuple(kernel for kernel in rows if PROCESSORS[kernel.processor]() and kernel.fits(shape))


def choose(format: str, shape: Shape, x: Tensor, *, exact: bool) -> str:
    """The name of the kernel that multiplies rows x.

    Args:
        exact: whether no product may be rounded to bf16.
    """
    device = "cpu" if x.is_cpu else x.device.type  # whose name takes longer to ask for than all else here
    for kernel in fitting(format, shape, device):
        if kernel.takes(x, exact):
            return kernel.name
    raise AssertionError(f"no kernel of {format} takes everything")


def said(format: str, shape: Shape, device: str) -> str:
    """What layers of a shape run in, such as "int8pack up to 16 rows, then widened to bf16"."""
    parts = []
    for kernel in fitting(format, shape, device):
        parts.append(f"{kernel.name} up to {kernel.rows} rows" if kernel.rows is not None else kernel.name)
        if kernel.rows is None:  # of what is left, nothing is asked but a gradient
            break
    return f"{format}: {', then '.join(parts)}"


def counted(module: nn.Module, device: str = "cpu") -> dict[str, int]:
    """What the packed linear layers of a module run in on a device, and how many they are."""
    layers: list[Any] = [part for part in module.modules() if getattr(part, "zoo_format", "")]
    return dict(Counter(said(layer.zoo_format, layer.zoo_shape, device) for layer in layers))
