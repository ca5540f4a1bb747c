"""Measure every kernel of the table in formats/kernels.py beside an fp32 Linear: what justifies each row.

    python benchmarks/layer_kernels.py                   the table, some minutes on one thread
    python benchmarks/layer_kernels.py --formats int8    only some formats
    python benchmarks/layer_kernels.py --json out.json   the same numbers as JSON as well

Kernels are timed in turn within each repeat, in processor time, so a busy machine slows all of them alike; ratios are medians.
A layer is repeated over enough copies to fall out of the cache, as it does between two tokens of a real model. A kernel that
would not be taken at that many rows is timed all the same. bitsandbytes' own layers with the same codes run beside nf4.
"""

import argparse
import copy
import importlib.util
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import interleave
from torch import nn
from zoo_compress.methods.quantize.formats import kernels
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.kernels import TABLE, fitting
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear

SHAPES = [(576, 1536), (2048, 8192)]  # (in, out)
ROWS = [1, 16, 32, 96]
BEYOND_CACHE = 96 << 20  # bytes of fp32 weights to cycle through


def int4(inputs: int, outputs: int) -> nn.Module:
    codes_OI = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    groups = (outputs, inputs // 64)
    return Int4Linear.of(codes_OI, torch.rand(groups) * 0.01, torch.randint(0, 16, groups, dtype=torch.uint8))


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "int4": int4,
    "nf4": lambda inputs, outputs: NF4Linear.from_linear(nn.Linear(inputs, outputs, bias=False)),
    "int8": lambda inputs, outputs: Int8Linear.from_linear(nn.Linear(inputs, outputs, bias=False)),
}


def bitsandbytes_nf4(layer: NF4Linear) -> nn.Module:
    """A layer of bitsandbytes with the same codes and scales."""
    import bitsandbytes as bnb

    other = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
    other.weight = bnb.nn.Params4bit(layer.dequantize(), requires_grad=False, quant_type="nf4", blocksize=64)
    other.weight.compress_statistics = False
    return other.to("cpu").eval()


def forced(layers: list[Any], kernel: kernels.Kernel, x_TI: torch.Tensor) -> None:
    """Run layers with a kernel, whatever the table says."""
    chosen = (kernels.Kernel(kernel.format, kernel.name),)
    before, kernels.fitting = kernels.fitting, lambda *_: chosen  # type: ignore[assignment]
    try:
        for layer in layers:
            layer(x_TI)
    finally:
        kernels.fitting = before


def measure(format: str, inputs: int, outputs: int, rows: int, repeats: int) -> dict[str, float]:
    """How many times as fast as fp32, and as bf16 of its own, each kernel of a format is at this many rows."""
    copies = max(1, min(24, BEYOND_CACHE // (4 * inputs * outputs)))
    x_TI = torch.randn(rows, inputs)
    plain = [nn.Linear(inputs, outputs, bias=False) for _ in range(copies)]
    half = [nn.Linear(inputs, outputs, bias=False).bfloat16() for _ in range(copies)]
    packed: list[Any] = [LAYERS[format](inputs, outputs).eval() for _ in range(copies)]
    calls: dict[str, Callable[[], Any]] = {
        "fp32": lambda: [layer(x_TI) for layer in plain],
        "bf16": lambda: [layer(x_TI.bfloat16()).float() for layer in half],
    }
    for kernel in fitting(format, packed[0].zoo_shape, "cpu"):
        own = copy.deepcopy(packed)  # kernels leave the codes in an order of theirs
        calls[kernel.name] = lambda kernel=kernel, own=own: forced(own, kernel, x_TI)
    if format == "nf4" and importlib.util.find_spec("bitsandbytes"):
        others = [bitsandbytes_nf4(layer) for layer in packed]
        calls["bitsandbytes"] = lambda: [layer(x_TI) for layer in others]
    seconds = interleave(calls, repeats, clock=time.process_time)
    return {name: seconds["fp32"] / value for name, value in seconds.items() if name != "fp32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for format in args.formats:
            print(f"\n{format}: times as fast as fp32 (above 1 is faster)")
            for inputs, outputs in SHAPES:
                for rows in args.rows:
                    ratios = measure(format, inputs, outputs, rows, args.repeats)
                    results.append({"format": format, "in": inputs, "out": outputs, "rows": rows, "ratio": ratios})
                    figures = "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
                    print(f"{inputs:>7}->{outputs:<6}{rows:>5} rows  {figures}", flush=True)
    unmeasured = {kernel.name for kernel in TABLE if kernel.device == "cuda"} | {"matmul_4bit"}
    print(f"\nnot measured here: {', '.join(sorted(unmeasured))} (of CUDA)")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
