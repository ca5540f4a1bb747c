"""int8: linear layers, token table and head stored as 8-bit integers, one scale a row.

Symmetric, absmax / 127 per output channel, no data needed (Krishnamoorthi 2018, arXiv:1806.08342, section 3). Kernels
and their measured times are in `packed.py`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.compressor import Record
from zoo.model import Model
from zoo_compress.quantize.packed import Int8Linear
from zoo_compress.quantize.replace import Quantize, QuantizeOptions, _empty_int8


class QuantizeInt8(Quantize):
    """Store every targeted linear layer, the token table and the head in 8 bits (Krishnamoorthi 2018, section 3)."""

    name = "quantize.int8"
    bits = 8

    class Options(QuantizeOptions):
        pass

    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        return Int8Linear.from_linear(linear)

    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        return _empty_int8(linear)

    def note(self, model: Model, options: Any) -> str:
        if model.device.type not in ("cpu", "meta"):
            return "On this device a layer is widened at each call: this saves memory and bytes, not time."
        return (
            "On CPU generating token by token gets faster; prompts and batches of more than 16 tokens run about as "
            "before, since their weights are widened on the way."
        )
