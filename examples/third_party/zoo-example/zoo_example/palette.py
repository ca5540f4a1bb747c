"""Palettes: a linear layer stores a handful of values and, for each weight, the number of the one it takes.

Deep Compression (Han et al. 2016, 1510.00149, section 3): the weights of each layer are clustered by k-means, begun with
centroids spread evenly from the smallest to the largest weight, which the paper finds best since large weights matter and
are few (section 3.2). That beginning draws no random number, so the same weights always give the same palette. The paper
trains the centroids afterwards and Huffman-codes the numbers; neither is done here.

Legend: I inputs, O outputs, N weights sorted, K values of the palette, P numbers to a byte.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from zoo.anatomy.modules import weight_out_in
from zoo.compressor import Context, Record, Trait
from zoo.errors import Refused
from zoo.model import Model
from zoo_compress.methods.quantize.base import LINEAR, Quantize, QuantizeOptions
from zoo_compress.methods.quantize.formats.packed import Packed, check_finite


class PaletteKMeans(Quantize):
    """Let the weights of each targeted linear layer take few values, found by k-means (Deep Compression, section 3).

    The base class chooses the layers, refuses what cannot follow, swaps modules in and replays that; here is what a
    packed layer is. Numbers of 1, 2 and 4 bits fill their bytes; those of 3 bits take 4, and those of more take 8.
    """

    name = "palette.kmeans"
    bits: ClassVar[int] = 8  # at most; the record has the number

    class Options(QuantizeOptions):
        bits: int = Field(4, ge=1, le=8, description="bits of a number: a palette has two to that power values")
        iterations: int = Field(
            50, ge=0, description="steps of k-means, fewer where nothing moves any more; 0: evenly spread values"
        )
        embedding: bool = Field(False, description="also pack the token table and the head, to 8 bits a row")

    def settings(self, options: Any) -> dict[str, Any]:
        return {"bits": options.bits, "iterations": options.iterations}

    def check(self, model: Model, state: Any, options: Any) -> None:
        super().check(model, state, options)
        for path, kind in self.outline(model, options)["modules"].items():
            count = weight_out_in(model.module.get_submodule(path)).numel() if kind == LINEAR else 0
            if count % (8 // options.bits):
                raise Refused(
                    f"{self.name}: {path} has {count} weights, and {8 // options.bits} numbers of {options.bits} bits share a byte. "
                    f"Leave it out with skip = ['{path}'], or choose bits = 8."
                )

    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_out_in(linear).float()
        check_finite(weight_OI)
        palette_K = palette(weight_OI.flatten(), 2 ** record["bits"], iterations=record["iterations"])
        packed = PaletteLinear(*weight_OI.shape, bits=record["bits"], device=weight_OI.device)
        packed.palette = palette_K
        packed.numbers = fold(nearest(weight_OI.flatten(), palette_K), bits=record["bits"])
        return packed

    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_out_in(linear)
        return PaletteLinear(*weight_OI.shape, bits=record["bits"], device=weight_OI.device)

    def traits(self, record: Record) -> dict[str, Trait]:
        own = Trait("packed", f"a palette of {2 ** record['bits']}")
        return {
            path: own if record["modules"][path] == LINEAR else trait for path, trait in super().traits(record).items()
        }

    def working_bytes(self, model: Model, options: Any, context: Context) -> int:
        return 3 * super().working_bytes(model, options, context)  # sorted weights and their sums in double precision

    def note(self, model: Model, options: Any) -> str:
        return "Weights are looked up at each call: this saves memory and bytes and costs time."


class PaletteLinear(Packed):
    """A linear layer that looks its weights up: `numbers` of a few bits each, in bytes, into a `palette` of floats."""

    zoo_bits: ClassVar[int] = 8

    numbers: torch.Tensor
    palette: torch.Tensor

    def __init__(self, out_features: int, in_features: int, *, bits: int, device: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        to_a_byte = 8 // bits
        self.zoo_packed = {"numbers": to_a_byte}  # type: ignore[misc]  # by which zoo counts parameters
        self.register_buffer(
            "numbers", torch.zeros(out_features * in_features // to_a_byte, dtype=torch.uint8, device=device)
        )
        self.register_buffer("palette", torch.zeros(2**bits, device=device))
        self.bias: nn.Parameter | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weight (out, in) in floating point."""
        numbers_N = unfold(self.numbers, bits=self.bits)
        return self.palette.to(dtype)[numbers_N].view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, bias={self.bias is not None}"


def palette(weights_N: torch.Tensor, count: int, *, iterations: int) -> torch.Tensor:
    """The values (K,) that weights take, ascending. Where some are zero, one value is zero: what was pruned stays so."""
    zero_N = weights_N == 0
    if not bool(zero_N.any()):
        return kmeans(weights_N, count, iterations=iterations)
    if bool(zero_N.all()):
        return weights_N.new_zeros(count)
    others_K = kmeans(weights_N[~zero_N], count - 1, iterations=iterations)
    return torch.cat([others_K, others_K.new_zeros(1)]).sort().values


def kmeans(values: torch.Tensor, count: int, *, iterations: int) -> torch.Tensor:
    """Cluster numbers (N,) into `count`: the centroids (K,), ascending; one that no number is nearest to stays where it is.

    Sorted once, every cluster is a range, whose sum is a difference of two running sums. So a step costs K searches, and
    the result depends neither on an order of summation nor on chance.
    """
    sorted_N = values.double().sort().values
    sums_N = F.pad(sorted_N.cumsum(0), (1, 0))
    centroids_K = (
        torch.linspace(0, 1, count, dtype=torch.float64, device=values.device) * (sorted_N[-1] - sorted_N[0])
        + sorted_N[0]
    )
    for _ in range(iterations):
        bounds = torch.searchsorted(sorted_N, (centroids_K[1:] + centroids_K[:-1]) / 2)
        bounds = F.pad(F.pad(bounds, (1, 0)), (0, 1), value=len(sorted_N))
        sizes_K = bounds.diff()
        means_K = sums_N[bounds].diff() / sizes_K.clamp_min(1)
        moved_K = torch.where(sizes_K > 0, means_K, centroids_K)
        if torch.equal(moved_K, centroids_K):
            break
        centroids_K = moved_K
    return centroids_K.float()


def nearest(values: torch.Tensor, palette_K: torch.Tensor) -> torch.Tensor:
    """The number of the palette's nearest value for each of `values`; the palette ascends."""
    return torch.bucketize(values, (palette_K[1:] + palette_K[:-1]) / 2).to(torch.uint8)


def fold(numbers: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Put as many numbers (N,) into a byte as fit: (N / P,), the first in the lowest bits."""
    folded, room = numbers.view(-1, 8 // bits), 8 // (8 // bits)
    out = torch.zeros_like(folded[:, 0])
    for place in range(folded.shape[1]):
        out |= folded[:, place] << (place * room)
    return out


def unfold(folded: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Take the numbers out of their bytes again: (N,), as indices."""
    room = 8 // (8 // bits)
    shifts_P = torch.arange(0, 8, room, device=folded.device)
    numbers: torch.Tensor = (folded[:, None].int() >> shifts_P.int()) & (2**room - 1)
    return numbers.flatten()
