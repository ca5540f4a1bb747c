"""int4: linear layers stored as 4-bit codes, with a scale and a zero for every group of neighbouring inputs.

Run by torch's kernel for int4 where shapes allow (`formats/int4_layers.py`). How codes are chosen is in `solvers/`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from zoo.model.model import Model
from zoo_compress.methods.quantize.uniform import QuantizeUniform, UniformOptions


class QuantizeInt4(QuantizeUniform):
    """Store targeted linear layers as 4-bit codes with a scale for every group of inputs, chosen by AWQ and GPTQ or without data by HQQ."""

    name = "quantize.int4"
    # 1 left experts in one tensor as they were, 2 had one damping of GPTQ for all, on clipped ranges, 3 drew noise by the batch
    version = 4
    bits = 4

    class Options(UniformOptions):
        embedding: bool = Field(False, description="also pack the token table and the head, to 8 bits a row")

    def note(self, model: Model, options: Any) -> str:
        said = super().note(model, options)
        if model.device.type in ("cpu", "meta"):
            said += " On CPU layers run in torch's int4 kernel with bf16 inputs, where groups are multiples of 32: prompts and tokens get faster."
        return said.strip()
