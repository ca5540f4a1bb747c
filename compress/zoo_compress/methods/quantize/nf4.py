"""NF4: linear layers stored in 4 bits, at the quantiles of a normal distribution, one scale a block of weights.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3), packed and run by bitsandbytes. `nested` is its double
quantisation: the scales themselves go to 8 bits, which saves 0.37 bits a weight.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from zoo.anatomy.modules import weight_out_in
from zoo.errors import Refused
from zoo.model.lineage import Record, State
from zoo.model.model import Model
from zoo_compress.methods.quantize.base import Quantize, QuantizeOptions
from zoo_compress.methods.quantize.formats.kernels import has_gemv_4bit
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear


class QuantizeNF4(Quantize):
    """Store every targeted linear layer in 4-bit NormalFloat (QLoRA, section 3)."""

    name = "quantize.nf4"
    version = 4  # 3 widened weights to float32 on every CPU
    bits = 4

    class Options(QuantizeOptions):
        embedding: bool = Field(False, description="also pack the token table and the head, to 8 bits a row")
        blocksize: Literal[64, 128, 256, 512, 1024, 2048, 4096] = Field(64, description="weights that share one scale")
        nested: bool = Field(False, description="quantise the scales too, to 8 bits")

    def check(self, model: Model, state: State, options: Any) -> None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise Refused(f"{self.name} packs and runs with bitsandbytes, which is missing: pip install bitsandbytes.")
        super().check(model, state, options)

    def settings(self, options: Any) -> dict[str, Any]:
        return {"blocksize": options.blocksize, "nested": options.nested}

    def refuse_shape(self, path: str, shape: torch.Size) -> None:
        if shape[1] % 2:
            raise Refused(
                f"{self.name}: {path} has {shape[1]} inputs, and two 4-bit weights share a byte of a row: the number "
                f"must be even. Leave it out with skip = ['{path}']."
            )

    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        return NF4Linear.from_linear(linear, blocksize=record["blocksize"], nested=record["nested"])

    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_out_in(linear)
        outputs, inputs = weight_OI.shape
        return NF4Linear(
            inputs, outputs, bias=False, blocksize=record["blocksize"], nested=record["nested"], device=weight_OI.device
        )

    def note(self, model: Model, options: Any) -> str:
        if model.device.type not in ("cpu", "meta"):
            return ""
        if has_gemv_4bit():
            return "On CPU layers run in bitsandbytes' kernel with bf16 inputs, where outputs are multiples of 32 and rows whole blocks: prompts and tokens get faster."
        return "On CPU the 4-bit weights are widened at each call: this saves memory and bytes and costs time."
