"""GGUF files: llama.cpp's format, of which transformers makes a plain model with its weights widened to floats.

transformers reads part of a header and leaves the rest without a word: a setting it does not know, a tensor it has no
place for. A model read so computes something else than the file's. Here every setting that changes what is computed is
compared with the config that came out, and every number in the file has to be a number of the model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.anatomy import names
from zoo.errors import ArtifactError, RequestError
from zoo.loading.directory import check_config
from zoo.system.memory import ran_out
from zoo.tensors.gguf import Header, read_header
from zoo_slm import architectures
from zoo_slm.checkpoints import require_complete
from zoo_slm.configs import UNFIT, auto_class, parsed, unfit, why
from zoo_slm.model_types import LAYERS_OF_LARGEST
from zoo_slm.quiet import quiet

ENDING = ".gguf"
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# What a header calls a setting (after the name of its architecture), and what configs call it: the first one that a
# config has is given the header's value, since transformers leaves some to the defaults of the class.
SETTINGS = {
    "embedding_length": names.WIDTH.configs,
    "block_count": names.LAYERS.configs,
    "attention.head_count": names.HEADS.configs,
    "context_length": names.CONTEXT.configs,
    "attention.key_length": names.HEAD_SIZE.configs,
    "attention.sliding_window": names.WINDOW.configs,
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "feed_forward_length": names.FFN_WIDTH.configs,
    "expert_count": names.EXPERTS.configs,
    "expert_used_count": names.EXPERTS_PER_TOKEN.configs,
    "expert_feed_forward_length": names.EXPERT_WIDTH.configs,
    "decoder_block_count": names.DECODER_LAYERS.configs,
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("scale_emb", "embedding_multiplier"),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "attention.clamp_kqv": ("clip_qkv",),
}
ROPE_SCALINGS = {"linear", "yarn", "longrope", "none"}
# Tensors that are settings: divisors of the rotary frequencies.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
PRIVATE = ("transformers_version", "_name_or_path", "_model_name_or_path", "dtype")  # of a config, and not of its model
# The published scaling of Llama 3.1 and later, which a file only holds as the divisors that follow from it.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class GGUF:
    """A GGUF file that transformers can read, with the config and the task of its model."""

    path: Path
    header: Header
    config: dict[str, Any]
    task: str

    @classmethod
    def at(cls, path: Path) -> GGUF:
        """Read the header of a file, check it, and make a config of it.

        Raises:
            ArtifactError: it is damaged, or describes another model than the one whose tensors it holds.
            RequestError: transformers does not read its architecture, or the package `gguf` is missing.
        """
        header = read_header(path)
        settings = _settings(path, header)
        for key, value in settings.items():
            check_config({SETTINGS.get(key, (key,))[0]: value}, f"{path}, {key}")
        if isinstance(blocks := settings.get("block_count"), int) and blocks > len(header.tensors):
            raise ArtifactError(
                f"{path} is a damaged GGUF file: its header has {blocks:,} blocks, and {len(header.tensors)} tensors."
            )
        config = _config(path, header)
        check_config(config, str(path))
        return cls(path, header, config, architectures.task_of(config, path))

    @property
    def license(self) -> str:
        named = self.header.metadata.get("general.license")
        return named[:100] if isinstance(named, str) else ""

    def notes(self) -> dict[str, Any]:
        """What the card says of the weights."""
        said = self.header.said()
        return {"Weights": f"Read from the GGUF file {self.path.name}: {said}."}

    def dtype(self) -> str:
        """The half precision that the file is written in, else float32, to which blocks are widened."""
        kinds = self.header.kinds
        half = next((kind for kind in ("BF16", "F16") if kind in kinds), "F32")
        return "float32" if set(kinds) - set(FLOATS) else str(FLOATS[half]).removeprefix("torch.")

    def module(self, dtype: torch.dtype | None) -> nn.Module:
        """Load the model with its weights widened.

        Raises:
            ArtifactError: the tensors are not those of the model that the header describes.
        """

        self._require_all()
        with (
            _readable(self.path),
            quiet(),
            redirect_stderr(StringIO()),
        ):  # of a bar that ignores what transformers is told
            module, report = auto_class(self.task).from_pretrained(
                self.path.parent,
                gguf_file=self.path.name,
                config=parsed(self.config),
                dtype=dtype or getattr(torch, self.dtype()),
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        require_complete(self.path, report, module)
        for owner, name in (
            (module, "hf_quantizer"),
            (module, "quantization_method"),
            (module.config, "quantization_config"),
        ):
            vars(owner).pop(name, None)
        evaluated: nn.Module = module.eval()
        return evaluated

    def processor(self) -> Any:
        """The tokenizer in the file; None where there is none."""
        if "tokenizer.ggml.tokens" not in self.header.metadata:
            return None
        from transformers import AutoTokenizer

        with _readable(self.path, (Exception,)), quiet():  # tokenizers raises no narrower class
            return AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True, trust_remote_code=False
            )

    def _require_all(self) -> None:
        """Refuse a file with more or fewer numbers than its model has: transformers would leave out or make up the rest."""

        with torch.device("meta"), unfit(self.config, self.task):
            empty = auto_class(self.task).from_config(parsed(self.config))
        expected = sum({id(tensor): tensor.numel() for tensor in empty.state_dict(keep_vars=True).values()}.values())
        held = sum(tensor.elements for name, tensor in self.header.tensors.items() if name not in ROPE_TENSORS)
        if held != expected:
            raise ArtifactError(
                f"{self.path} holds {held:,} weights, and the {type(empty).__name__} that transformers makes of its header has "
                f"{expected:,}; give the safetensors checkpoint it was made from."
            )


def _settings(path: Path, header: Header) -> dict[str, Any]:
    """What a header says of its architecture, under short names."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ArtifactError(f"{path} does not say of which architecture it is (general.architecture).")
    start = f"{architecture}."
    return {key.removeprefix(start): value for key, value in header.metadata.items() if key.startswith(start)}


def _config(path: Path, header: Header) -> dict[str, Any]:
    """The config that transformers makes of a header, with what it leaves to the defaults of the class."""
    from transformers import AutoConfig

    with _readable(path), quiet():
        config = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    settings = _settings(path, header)
    for key, called in SETTINGS.items():
        value = settings.get(key)
        name = next((name for name in called if hasattr(config, name)), "")
        if not value or isinstance(value, list) or getattr(config, name or " ", None) == value:  # 0: there is none
            continue
        if name:
            setattr(config, name, value)
        elif key != "context_length" and value != _follows(key, config):  # which only a table of positions bounds
            raise _not_read(path, key, value)
    _set_vocabulary(path, header, config)
    if hasattr(config, "query_pre_attn_scalar"):
        largest = config.num_hidden_layers == LAYERS_OF_LARGEST.get(header.metadata["general.architecture"])
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    _set_rope(path, header, settings, config)
    values: dict[str, Any] = json.loads(json.dumps({**config.to_diff_dict(), "model_type": config.model_type}))
    return {key: value for key, value in values.items() if key not in PRIVATE}


def _set_vocabulary(path: Path, header: Header, config: Any) -> None:
    """Take the size of the vocabulary from its table, and no special token from beyond it: those are of the config class."""
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ArtifactError(f"{path} holds no table of tokens (token_embd.weight).")
    config.vocab_size = table.shape[0]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and not 0 <= token < config.vocab_size:
            setattr(config, name, None)


def _not_read(path: Path, key: str, value: Any) -> RequestError:
    return RequestError(
        f"{path} says {key} = {str(value)[:40]}, which transformers does not take over for its architecture; give the "
        "safetensors checkpoint it was made from."
    )


def _set_rope(path: Path, header: Header, settings: dict[str, Any], config: Any) -> None:
    """Take over what a file says of its rotary embedding: base, part of a head, scaling, divisors of the frequencies."""
    tables = getattr(config, "rope_parameters", None) or {}
    rope = tables.get("full_attention", tables)  # a file says nothing of the layers of a window, whose base is fixed
    if not rope:
        return
    if (base := settings.get("rope.freq_base")) is not None:
        rope["rope_theta"] = base
    width = _head_width(config)
    rotated = settings.get("rope.dimension_count", width)
    if rotated != int(width * rope.get("partial_rotary_factor", 1.0)):
        rope["partial_rotary_factor"] = rotated / width
    kind = settings.get("rope.scaling.type", "none")
    told = kind != "longrope" or ROPE_TENSORS[1] in header.tensors  # by what it scales
    if kind not in ROPE_SCALINGS or not told or (kind in ("linear", "yarn") and "rope.scaling.factor" not in settings):
        raise _not_read(path, "rope.scaling.type", kind)
    original = settings.get("rope.scaling.original_context_length")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": settings.get("rope.scaling.factor")}
        rope |= {"original_max_position_embeddings": original} if kind == "yarn" else {}
    if ROPE_TENSORS[0] in header.tensors:
        rope |= _llama3(path, header, rope["rope_theta"], rotated)
    if ROPE_TENSORS[1] in header.tensors:
        long, short = (_floats(path, header, name) for name in ROPE_TENSORS[1:])
        rope |= {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        rope["original_max_position_embeddings"] = config.original_max_position_embeddings = original
        rope |= {"attention_factor": factor} if (factor := settings.get("rope.scaling.attn_factor")) else {}


def _follows(key: str, config: Any) -> Any:
    """What a setting is for which a config has no word, since it follows from others; None where it does not."""
    return {"attention.key_length": _head_width(config), "feed_forward_length": 4 * config.hidden_size}.get(key)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _llama3(path: Path, header: Header, base: float, width: int) -> dict[str, Any]:
    """The scaling of Llama 3 whose divisors a file holds.

    Raises:
        RequestError: they are not those of that scaling.
    """
    divisors = _floats(path, header, ROPE_TENSORS[0])
    scaling = {"rope_type": "llama3", "factor": max(divisors), **LLAMA3}
    plain = [base ** (-2 * i / width) for i in range(width // 2)]
    wanted = [_llama3_divisor(frequency, scaling) for frequency in plain]
    if len(divisors) != len(wanted) or not all(
        math.isclose(divisor, other, rel_tol=1e-4) for divisor, other in zip(divisors, wanted, strict=True)
    ):
        raise _not_read(path, ROPE_TENSORS[0], "other divisors than those of Llama 3")
    return scaling


def _llama3_divisor(frequency: float, scaling: dict[str, Any]) -> float:
    """By what Llama 3.1 divides a frequency: 1 for short waves, `factor` for long ones, and between them smoothly."""
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    share: float = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - share) / factor + share)


def _floats(path: Path, header: Header, name: str) -> list[float]:
    """The values of a small tensor of float32.

    Raises:
        ArtifactError: it is missing, large, or of another kind.
    """
    tensor = header.tensors.get(name)
    if tensor is None or tensor.kind != "F32" or tensor.elements > 4096:
        raise ArtifactError(f"{path}: tensor {name!r} is no short list of float32.")
    with path.open("rb") as file:
        file.seek(tensor.start)
        return list(struct.unpack(f"<{tensor.elements}f", file.read(tensor.end - tensor.start)))


@contextmanager
def _readable(path: Path, kinds: tuple[type[Exception], ...] = UNFIT) -> Iterator[None]:
    """Say in a sentence what transformers or gguf find wrong with a file."""
    wrong: tuple[type[Exception], ...] = (*kinds, OSError, AssertionError)
    try:
        yield
    except ImportError as error:
        if getattr(error, "name", None) == "gguf" or "gguf" in str(error):
            raise RequestError(
                f"{path}: reading GGUF takes the package gguf: pip install 'zoo-compress[gguf]'."
            ) from None
        raise ArtifactError(f"{path} cannot be loaded: {why(error)}.") from None
    except wrong as error:
        if ran_out(error):
            raise
        raise ArtifactError(f"{path} cannot be loaded: {why(error)}.") from None
