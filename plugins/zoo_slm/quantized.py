"""Checkpoints whose tensors are the codes of a quantizer, which transformers widens to plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import ArtifactError, RequestError
from zoo.loading.directory import QUANTIZED_KEYS

# How transformers calls the settings of each quantizer whose codes it widens without a GPU; bitsandbytes does it after
# loading, the others while they load.
SETTINGS = {
    "bitsandbytes": "BitsAndBytesConfig",
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
}


def quantizer_of(config: Mapping[str, Any], where: str, *, dequantize: bool) -> dict[str, Any] | None:
    """The table in which a config says what made the codes that are to be widened; None where there are none.

    Raises:
        ArtifactError: nobody asked to widen them, and it can be done.
        RequestError: somebody asked, and transformers does not widen those of this quantizer.
    """
    table = next((config[key] for key in QUANTIZED_KEYS if config.get(key)), None)
    method = table.get("quant_method") if isinstance(table, dict) else table
    if table is None or (not dequantize and method not in SETTINGS):
        return None
    if method not in SETTINGS:
        raise RequestError(
            f"{where}: transformers cannot dequantize the weights of {str(method or 'an unnamed method')[:40]}, only those of "
            f"{', '.join(SETTINGS)}; give the checkpoint in float that they were made from."
        )
    if not dequantize:
        raise ArtifactError(
            f"{where} says that the weights are already quantized, by {method}; give the checkpoint in float that they were "
            'made from, or widen them to plain weights with weights = "dequantized".'
        )
    return dict(table)


def settings(quantizer: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `from_pretrained` takes to widen the codes."""
    import transformers

    if quantizer is None:
        return {}
    if quantizer["quant_method"] == "bitsandbytes":
        return {"device_map": "cpu"}
    kind = getattr(transformers, SETTINGS[quantizer["quant_method"]])
    return {"quantization_config": kind.from_dict({**quantizer, "dequantize": True})}


def widened(module: Any, quantizer: Mapping[str, Any]) -> Any:
    """The module with plain layers, and nothing in it that says what its weights were."""
    if quantizer["quant_method"] == "bitsandbytes":
        module = module.dequantize(module.dtype)
    for owner, name in (
        (module, "hf_quantizer"),
        (module, "quantization_method"),
        (module, "hf_device_map"),
        (module.config, "quantization_config"),
        (module.config, "_pre_quantization_dtype"),
    ):
        vars(owner).pop(name, None)
    return module
