"""Checkpoints whose tensors are the codes of a quantizer, which transformers widens to plain weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ArtifactError, RequestError
from zoo.loading.codes import QUANTIZED_KEYS, REMEDY, method_of
from zoo.model.building import cast_parameters
from zoo.tensors import safetensors

if TYPE_CHECKING:
    import torch

# How transformers calls the settings of each quantizer whose codes it widens without a GPU; bitsandbytes does it after
# loading, the others while they load.
SETTINGS = {
    "bitsandbytes": "BitsAndBytesConfig",
    "compressed-tensors": "CompressedTensorsConfig",
    "fp8": "FineGrainedFP8Config",
    "metal": "MetalConfig",
    "mxfp4": "Mxfp4Config",
    "mxfp8": "FineGrainedFP8Config",
}
# what transformers needs for it beside what we need ourselves
PACKAGES = {"compressed-tensors": "compressed_tensors"}
HOW = (
    'weights="dequantized" in Python and under [model] in a recipe, `--weights dequantized` in a command; '
    "a teacher is saved so first"
)


def quantizer_of(config: Mapping[str, Any], where: str, *, dequantize: bool) -> dict[str, Any] | None:
    """The table in which a config says what made the codes that are to be widened; None where there are none.

    Raises:
        ArtifactError: nobody asked to widen them, and it can be done.
        RequestError: somebody asked, and transformers does not widen those of this quantizer, or not here.
    """
    table = next((config[key] for key in QUANTIZED_KEYS if config.get(key)), None)
    method = method_of(table)
    if table is None or (not dequantize and method not in SETTINGS):
        return None
    if method not in SETTINGS or not isinstance(table, Mapping):
        raise RequestError(
            f"{where}: transformers cannot dequantize the weights of {method}, only those of {', '.join(SETTINGS)}; {REMEDY}."
        )
    if not dequantize:
        raise ArtifactError(
            f"{where} says that the weights are already quantized, by {method}; {REMEDY}, or ask for plain weights made of "
            f"the codes: {HOW}."
        )
    if (package := PACKAGES.get(method)) and not find_spec(package):
        raise RequestError(
            f"{where}: the weights of {method} are dequantized with a package that is not installed: pip install {method}."
        )
    return dict(table)


def require_whole_blocks(files: Iterable[Path], quantizer: Mapping[str, Any]) -> None:
    """Refuse codes whose blocks are smaller at an edge: transformers takes them to be of one size, and other numbers come out.

    Raises:
        RequestError: names the first weight that is no whole number of blocks wide or high.
    """
    block = quantizer.get("weight_block_size")
    if (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(type(size) is int and size > 0 for size in block)
    ):
        return
    shapes = {name: about["shape"] for file in files for name, about in safetensors.read_header(file).items()}
    for name, grid in shapes.items():
        weight = name.removesuffix("_scale_inv")
        for size, count, of in zip(shapes.get(weight, ()), grid, block, strict=False):
            if weight != name and 1 < count == -(-size // of) and size % of:
                raise RequestError(
                    f"{weight!r} has a side of {size}, which is no whole number of blocks of {of}, and transformers "
                    f"{version('transformers')} widens such codes to wrong numbers; {REMEDY}."
                )


def settings(quantizer: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `from_pretrained` takes to widen the codes."""
    import transformers

    if quantizer is None:
        return {}
    method = quantizer["quant_method"]
    if method == "bitsandbytes":
        return {"device_map": "cpu"}
    kind = getattr(transformers, SETTINGS[method])
    found = {"quantization_config": kind.from_dict({**quantizer, "dequantize": True})}
    return found | ({"device_map": "cpu"} if method == "metal" else {})  # else it asks for Apple's GPU


def widened(module: Any, quantizer: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The module with plain layers in `dtype`, and nothing in it that says what its weights were."""
    if quantizer["quant_method"] == "bitsandbytes":
        module = module.dequantize(dtype)
    cast_parameters(module, dtype)  # some become what their scales are
    for owner, name in (
        (module, "hf_quantizer"),
        (module, "quantization_method"),
        (module, "hf_device_map"),
        (module.config, "quantization_config"),
        (module.config, "_pre_quantization_dtype"),
    ):
        vars(owner).pop(name, None)
    return module
