"""How each row of compression.py is compressed: by stages of zoo, and by the libraries beside it.

A builder takes what was loaded, the row and the settings, and returns the module that is measured. Libraries are imported
inside, so that a row needs none but its own. One that packs codes only when it saves them leaves in row["saved"] where.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Settings = dict[str, Any]


def untouched(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    """The original, in bf16 where the row says so."""
    return in_dtype(subject.module, row)


def in_dtype(module: nn.Module, row: Settings) -> nn.Module:
    """The module in the dtype that a library is run in: 4 bits in bf16, for which kernels are; 8 bits in both."""
    return module.to(getattr(torch, row["dtype"]))


def zoo_stage(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    from zoo_compress import apply

    from zoo.data.open import open_data
    from zoo.model.context import Context

    options, data = dict(row["options"]), {}
    if text := row["calibration"]:
        options |= {"samples": settings["samples"], "length": settings["length"]}
        data = {"calibration": open_data(settings["data"][text])}
    apply(subject.model, row["stage"], options, Context(data=data))
    return subject.model.module


def replaced(module: nn.Module, build: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The module with every linear layer but the head replaced."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, build(child))
    return module


def not_head(module: nn.Module) -> Callable[[nn.Module, str], bool]:
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    return lambda layer, _: isinstance(layer, nn.Linear) and layer is not head


def torchao(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = in_dtype(subject.module, row)
    if row["bits"] == 8:
        config: Any = Int8WeightOnlyConfig()
    else:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        config = PrototypeInt4WeightOnlyConfig(
            group_size=row["group"], int4_choose_qparams_algorithm=row["method"], set_inductor_config=False
        )
    quantize_(module, config, filter_fn=not_head(module))
    return module


def bitsandbytes(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    import bitsandbytes as bnb

    def build(linear: nn.Linear) -> nn.Module:
        size, bias = (linear.in_features, linear.out_features), linear.bias is not None
        if row["bits"] == 4:
            kind = {"quant_type": row["method"], "compute_dtype": getattr(torch, row["dtype"])}
            packed = bnb.nn.Linear4bit(*size, bias=bias, **kind)
            packed.weight = bnb.nn.Params4bit(
                linear.weight.data,
                requires_grad=False,
                quant_type=row["method"],
                blocksize=row["group"],
                compress_statistics=False,
            )
        else:
            packed = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, threshold=6.0)
            packed.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        packed.bias = linear.bias
        return packed.to("cpu").eval()

    return replaced(in_dtype(subject.module, row), build)


def hqq(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=row["group"], axis=1)
    return replaced(subject.module, lambda linear: HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu"))


def quanto(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    from optimum.quanto import freeze, qint4, qint8, quantize

    module = in_dtype(subject.module, row)
    quantize(module, weights=qint4 if row["bits"] == 4 else qint8, exclude="*lm_head")
    freeze(module)
    return module


def gptqmodel(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own number on two cores, 1, is less than it asks for
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=4, group_size=row["group"], sym=False, desc_act=False)
    model = GPTQModel.load(settings["original"], config, device="cpu")
    windows = settings["windows"][row["calibration"]]
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows], batch_size=1)
    row["saved"] = tempfile.mkdtemp()
    model.save(row["saved"])
    return GPTQModel.load(row["saved"], device="cpu", backend=BACKEND.TORCH).model


def llmcompressor(subject: Any, row: Settings, settings: Settings) -> nn.Module:
    from datasets import Dataset
    from llmcompressor import oneshot

    windows = settings["windows"][row["calibration"]]
    data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows])
    sizes = {"max_seq_length": settings["length"], "num_calibration_samples": len(windows)}
    oneshot(model=subject.module, dataset=data, recipe=modifier_of(row), **sizes)
    if "group" in row:  # codes are packed when they are saved
        from transformers import AutoModelForCausalLM

        row["saved"] = tempfile.mkdtemp()
        subject.module.save_pretrained(row["saved"], save_compressed=True)
        again = AutoModelForCausalLM.from_pretrained(row["saved"])
        again(input_ids=torch.tensor([windows[0][:2]]))  # the first whole pass unpacks the layers
        return again
    return subject.module


def modifier_of(row: Settings) -> Any:
    """What llm-compressor calls a step of a recipe."""
    if row["method"] in ("wanda", "sparsegpt"):
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

        kind = WandaPruningModifier if row["method"] == "wanda" else SparseGPTModifier
        return kind(sparsity=0.5, mask_structure=row["structure"], targets=["Linear"], ignore=["re:.*lm_head"])
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=4, group_size=row["group"], symmetric=False, strategy="group")
    groups = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}
    if row["method"] == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return GPTQModifier(ignore=["lm_head"], **groups)
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(ignore=["lm_head"], **groups)]


BUILDERS: dict[str, Callable[[Any, Settings, Settings], nn.Module]] = {
    "original": untouched,
    "zoo": zoo_stage,
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
    "hqq": hqq,
    "quanto": quanto,
    "gptqmodel": gptqmodel,
    "llmcompressor": llmcompressor,
}
