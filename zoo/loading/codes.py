"""Codes of a quantizer, which stand for weights and are none: found by what a config says, and by the tensors themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import ArtifactError
from zoo.tensors import safetensors

# of configs, by which checkpoints say that their tensors are codes
QUANTIZED_KEYS = ("quantization_config", "compression_config")
REMEDY = "give the checkpoint in float that they were made from"
# What quantizers call their codes: weight, qweight, weight_packed, ...; of mxfp4, hqq and aqlm.
CODES = re.compile(r"weight|_blocks$|\.(W_q|codes)$")


def method_of(table: Any) -> str:
    """The quantizer that the value of such a key names, whatever a checkpoint writes there."""
    if isinstance(table, Mapping):
        table = table.get("quant_method") or table.get("quant_type")
    return table[:40] if table and isinstance(table, str) else "an unnamed method"


def without_codes(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says that its tensors are codes, at any depth of tables."""
    return {
        key: without_codes(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in QUANTIZED_KEYS
    }


def require_no_codes(files: Iterable[Path]) -> None:
    """Refuse weight files that hold codes, where no config says so: copied into a model they would be noise.

    Raises:
        ArtifactError: names the first tensor of them.
    """
    headers = {file: safetensors.read_header(file) for file in files}
    scaled = {name.rpartition(".")[0] for header in headers.values() for name in header if "scale" in name}
    for file, header in headers.items():
        for name, about in header.items():
            kind = str(about["dtype"])
            whole = kind[0] in "IU" and CODES.search(name)
            # eight bits of a float are a weight, if a coarse one, unless a scale stands beside them
            if whole or kind.startswith("F4") or (kind.startswith("F8") and name.rpartition(".")[0] in scaled):
                raise ArtifactError(
                    f"{file}: {name!r} is of {kind}, the codes of a quantizer that no config there names; {REMEDY}."
                )
