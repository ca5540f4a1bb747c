"""int8: linear layers, token table and head stored as 8-bit integers, one scale a row.

Symmetric, absmax / 127 per output channel, no data needed (Krishnamoorthi 2018, arXiv:1806.08342, section 3), unless a group
or a method is asked for. Kernels and their measured times are in `formats/kernels.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from zoo.model.model import Model
from zoo_compress.methods.quantize.formats.kernels import has_bf16_products
from zoo_compress.methods.quantize.uniform import Activations, Group, Method, QuantizeUniform, UniformOptions

W8A8 = (
    "Activations are rounded to int8 for each token (W8A8), which loses about ten times what 8-bit weights alone do: KL .028 against "
    ".003 on SmolLM2-135M. Prompts and batches are multiplied in int8 where the processor has VNNI."
)
SMALL = 2**18  # entries; below, a call costs more than reading the weights (benchmarks/decode.py)


class QuantizeInt8(QuantizeUniform):
    """Store targeted linear layers and convolutions, the token table and the head in 8 bits (Krishnamoorthi 2018, section 3)."""

    name = "quantize.int8"
    # 3 multiplied many rows in float32, whatever the processor; 4 where it has no products in bf16, and few rows rounded to bf16,
    # and had one damping of GPTQ for all; 5 drew noise by the batch
    version = 6
    bits = 8

    class Options(UniformOptions):
        method: Literal["auto"] | Method = Field(
            "rounding", description="how codes are chosen; rounding loses next to nothing at 8 bits"
        )
        group: Group = Field(
            "row",
            description='inputs that share a scale: "row" for all of them, since a smaller group has no kernel and runs slower',
        )

        convolutions: bool = Field(True, description="also pack convolutions")
        activations: Activations = Field(
            "float",
            description='"int8" also rounds what linear layers read, with a scale for each token as it comes (W8A8, dynamic, per token): '
            "prompts get faster, predictions change about ten times as much; tables, heads and convolutions are left out",
        )

    def note(self, model: Model, options: Any) -> str:
        return W8A8 if options.activations == "int8" else self._speed(model)

    def _speed(self, model: Model) -> str:
        if model.device.type not in ("cpu", "meta"):
            return "On this device a layer is widened at each call: this saves memory and bytes, not time."
        if "language" not in model.anatomy.stacks:
            return "On CPU the weights are widened at each call of many rows: this saves memory and bytes, not time."
        long = "prompts and batches run about as before or a little slower, since their weights are widened on the way."
        if has_bf16_products():
            long = "prompts and batches run in bf16, to which their weights are widened on the way, about as fast as a model in bfloat16."
        if _median_size(model) < SMALL:
            return f"On CPU layers this small gain little or no time token by token, since a call costs more than reading their weights; {long}"
        return f"On CPU generating token by token gets faster; {long}"


def _median_size(model: Model) -> int:
    """Entries of the middle one of the language stack's projections."""
    sizes = sorted(p.numel() for p in model.module.parameters() if p.dim() == 2)
    return sizes[len(sizes) // 2] if sizes else 0
