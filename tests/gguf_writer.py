"""GGUF files of small models of transformers, written as llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

Permuted = Callable[[np.ndarray], np.ndarray]
SUFFIXES = (".weight", ".bias")
# What the settings of a header are called in configs of transformers.
SETTINGS = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
}
EPSILONS = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("norm_epsilon", "layer_norm_eps", "layer_norm_epsilon"),
}


def write(
    path: Path,
    model: Any,
    architecture: str,
    *,
    kind: str = "F32",
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model of transformers as a GGUF file of an architecture.

    Args:
        kind: in which its matrices are stored; what is no matrix is F32.
        settings: of the header, after the architecture's name, beside those of the config; None leaves one out.
        tensors: more of them.
    """
    writer, config = gguf.GGUFWriter(str(path), architecture), model.config
    for key, value in {**_settings(config), **(settings or {})}.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is table.weight
    for name, tensor in model.state_dict().items():
        if tied and model.get_parameter(name) is table.weight and name.startswith("lm_head"):
            continue
        for part, piece in _parts(name, tensor.detach().float()):
            known = names.get_name(part, SUFFIXES) or names.get_name(part.removeprefix("transformer."), SUFFIXES)
            assert known is not None, part
            values = _converted(known, piece.numpy(), architecture, config)
            _put(writer, known, values, kind if values.ndim > 1 else "F32")
    for name, values in (tensors or {}).items():
        _put(writer, name, values, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _parts(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a file that one of transformers is: it has the gates and the ups of all experts in one."""
    if name.endswith("experts.gate_up_proj"):
        stem = name.removesuffix("gate_up_proj")
        return [
            (f"{stem}{part}_proj.weight", piece) for part, piece in zip(("gate", "up"), tensor.chunk(2, 1), strict=True)
        ]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", tensor)]
    return [(name, tensor)]


def _settings(config: Any) -> dict[str, Any]:
    found = {}
    for key, names in {**SETTINGS, **EPSILONS}.items():
        value = next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
        if value is not None:
            found[key] = value
    tables = getattr(config, "rope_parameters", None) or {}
    if rope := tables.get("full_attention", tables):
        found["rope.freq_base"] = float(rope["rope_theta"])
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found["rope.dimension_count"] = int(width * rope.get("partial_rotary_factor", 1.0))
        found["attention.key_length"] = found["attention.value_length"] = width
    return found


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, config: Any) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = {index: token for token, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(index, f"[PAD{index}]") for index in range(config.vocab_size)])
    writer.add_token_types([3 if i in special else 1 if i in words else 5 for i in range(config.vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _converted(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    """What the converter of an architecture does to a tensor."""
    if architecture == "llama" and ".attn_q." in name:
        return _paired(values, config.num_attention_heads)
    if architecture == "llama" and ".attn_k." in name:
        return _paired(values, config.num_key_value_heads)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return np.ascontiguousarray(values.T)
    if (
        architecture == "bloom" and "attn_qkv" in name
    ):  # q, k and v of each head together, in a file one after the other
        parts = values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:]).swapaxes(0, 1)
        return np.ascontiguousarray(parts.reshape(values.shape))
    if architecture == "mamba" and name.endswith("ssm_a"):
        return -np.exp(values)
    if "conv1d.weight" in name or "shortconv.conv.weight" in name:
        return values.squeeze(1)
    return values


def _paired(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in the order of llama.cpp's rotary embedding, which turns neighbours and not halves."""
    return np.ascontiguousarray(
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def _put(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    stored = GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)


def logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([tokens])).logits
    return result
