"""Sentence encoders: a transformer without a head, pooling, and what sentence-transformers lets follow it.

What follows the transformer is said in the config under `sentence_encoder`: "modules", in their order, each of a "type"
(Pooling, Dense, Normalize) with the "config" of its folder; "pooler", whether the transformer has the pooler of its
class, which no vector here is read from; and of a sentence-transformers folder its other files, see `sentence_files`.

Legend: B sentences, T tokens, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from zoo.errors import RequestError
from zoo.family.text.pooling import POOLS, pooled
from zoo_slm.model_types import ENCODERS

KEY = "sentence_encoder"
BACKBONE = "backbone."  # what the names of the transformer's tensors begin with
LEGACY = {  # what older configs call each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Mish", "Softplus")
SENTENCE = (None, "sentence_embedding")  # what a module reads and writes, where its config says


@dataclass(frozen=True)
class Pooling:
    """How the tokens of a sentence become one vector."""

    modes: tuple[str, ...]
    include_prompt: bool = True  # whether the tokens of a prompt count

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Pooling:
        """Read the config of a Pooling module.

        Raises:
            RequestError: it asks for what is not known here.
        """
        known = ("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *LEGACY)
        _require_known(config, known, where)
        named = config.get("pooling_mode") or [mode for key, mode in LEGACY.items() if config.get(key)] or ["mean"]
        modes = (named,) if isinstance(named, str) else tuple(named)
        for mode in modes:
            if mode not in POOLS:
                raise RequestError(f"{where} pools by {mode!r}; known are {', '.join(POOLS)}.")
        return cls(modes, bool(config.get("include_prompt", True)))


class Dense(nn.Module):
    """A linear layer and an activation on a sentence's vector, with a way around them where the config says so."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        super().__init__()
        known = ("in_features", "out_features", "bias", "activation_function", "use_residual")
        _require_known(config, (*known, "module_input_name", "module_output_name"), where)
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in SENTENCE:
                raise RequestError(f"{where}: {key} is {config[key]!r}; only 'sentence_embedding' is computed here.")
        read, write = (_size(config, key, where) for key in ("in_features", "out_features"))
        self.linear = nn.Linear(read, write, bias=bool(config.get("bias", True)))
        self.activation = _activation(config.get("activation_function", "torch.nn.modules.activation.Tanh"), where)
        self.around = bool(config.get("use_residual", False))
        if self.around and read != write:
            self.residual = nn.Linear(read, write, bias=False)

    def forward(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        made_BD: torch.Tensor = self.activation(self.linear(vectors_BD))
        if not self.around:
            return made_BD
        return made_BD + (self.residual(vectors_BD) if hasattr(self, "residual") else vectors_BD)


class Normalize(nn.Module):
    """Vectors of length 1."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        super().__init__()
        _require_known(config, ("module_input_name", "module_output_name"), where)
        if any(value not in SENTENCE for value in config.values()):
            raise RequestError(f"{where} scales the vectors of tokens; only those of sentences are computed here.")

    def forward(self, vectors_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors_BD, p=2, dim=-1)


class SentenceEncoder(nn.Module):
    """Tokens in, one vector a sentence out (B, D)."""

    TYPES: ClassVar[dict[str, Any]] = {"Dense": Dense, "Normalize": Normalize}

    def __init__(self, backbone: Any, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        pooling, *others = about["modules"]
        self.pooling = Pooling.of(pooling.get("config", {}), _where(pooling))
        self.head = nn.ModuleDict(
            {
                str(place): self.TYPES[one["type"]](one.get("config", {}), _where(one))
                for place, one in enumerate(others, 1)
            }
        )
        _require_chained(backbone.config.hidden_size, self.pooling, others)
        self.names = set(signature(backbone.forward).parameters)

    @property
    def config(self) -> Any:
        return self.backbone.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.backbone.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.backbone.get_input_embeddings()
        return table

    def _init_weights(self, part: Any) -> None:
        if isinstance(part, nn.Linear):
            part.reset_parameters()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return vectors (B, D); `pooling_mask` is 1 where a token counts, where that is not every one that is read."""
        read_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        beside: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if "use_cache" in self.names:
            beside["use_cache"] = False
        hidden_BTD = self.backbone(input_ids=input_ids, attention_mask=read_BT, **beside).last_hidden_state
        mask_BT = read_BT if pooling_mask is None else pooling_mask
        vectors_BD = pooled(hidden_BTD, mask_BT, self.pooling.modes, read_BT=read_BT)
        for module in self.head.values():
            vectors_BD = module(vectors_BD)
        return vectors_BD


def plain(pooling: str = "mean") -> dict[str, Any]:
    """What follows a transformer that comes alone: the mean of its tokens, as in sentence-transformers."""
    return {"modules": [{"type": "Pooling", "config": {"pooling_mode": pooling}}]}


def backbone_class(config: Mapping[str, Any]) -> Any:
    """The class of transformers that a backbone is built and loaded by."""
    import transformers

    return getattr(transformers, ENCODERS.get(str(config.get("model_type")), "AutoModel"))


def build_backbone(config: Mapping[str, Any], values: Any, **given: Any) -> Any:
    """The transformer that a config describes; `values` is the config as its class reads it.

    Raises:
        RequestError: it reads no mask of padding, so that the sentences of a batch would change one another's vectors.
    """
    cls = backbone_class(config)
    build = cls.from_config if hasattr(cls, "from_config") else cls._from_config
    backbone = build(values, **given, **pooler_of(config))
    require_masked(backbone, config)
    return backbone.eval()


def pooler_of(config: Mapping[str, Any]) -> dict[str, bool]:
    """What to tell the class of a transformer whose checkpoint has no pooler: its class makes one otherwise."""
    import transformers
    from transformers.models.auto import modeling_auto

    cls = getattr(transformers, str(modeling_auto.MODEL_MAPPING_NAMES.get(str(config.get("model_type")))), None)
    takes = cls is not None and "add_pooling_layer" in signature(cls.__init__).parameters
    return {"add_pooling_layer": False} if takes and not config[KEY].get("pooler", True) else {}


def require_masked(backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Refuse a transformer that reads no mask of padding."""
    if "attention_mask" not in signature(backbone.forward).parameters:
        raise RequestError(
            f"{type(backbone).__name__} ({config.get('model_type')}) takes no attention_mask, so that padding would change a "
            "sentence's vector; such encoders are not read."
        )


def require_modules(modules: Any, where: str) -> None:
    """Refuse what does not begin with a Pooling, or goes on with anything but Dense and Normalize."""
    sound = isinstance(modules, list) and modules and all(isinstance(one, dict) for one in modules)
    types = [str(one.get("type")) for one in modules] if sound else []
    if not types or types[0] != "Pooling":
        raise RequestError(
            f"{where}: a Pooling is to follow the Transformer, and there is {', '.join(types) or 'nothing'}."
        )
    for name in types[1:]:
        if name not in SentenceEncoder.TYPES:
            raise RequestError(
                f"{where}: a {name} follows the Pooling; what is computed here is {' and '.join(SentenceEncoder.TYPES)}."
            )


def _require_chained(width: int, pooling: Pooling, others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a Dense that reads vectors of another width than those before it have."""
    width *= len(pooling.modes)
    for one in others:
        if one["type"] == "Dense":
            if (read := one["config"]["in_features"]) != width:
                raise RequestError(
                    f"{_where(one)}: in_features is {read}, and the vectors before it have {width} numbers."
                )
            width = one["config"]["out_features"]


def _where(module: Mapping[str, Any]) -> str:
    return f"the sentence encoder's {module.get('path') or module.get('type')}"


def _require_known(config: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := sorted(config.keys() - set(known)):
        raise RequestError(f"{where}: {unknown[0]!r} is none of the settings that are read: {', '.join(known)}.")


def _size(config: Mapping[str, Any], key: str, where: str) -> int:
    size = config.get(key)
    if type(size) is not int or not 0 < size < 2**24:
        raise RequestError(f"{where}: {key} is {size!r}, which is no width.")
    return size


def _activation(name: Any, where: str) -> nn.Module:
    """The activation that a config names by its import path; one of torch's, by a list, since nothing is imported for it."""
    short = str(name).rpartition(".")[2]
    if not str(name).startswith("torch.nn.") or short not in ACTIVATIONS:
        raise RequestError(f"{where}: the activation {name!r} is none of torch's {', '.join(ACTIVATIONS)}.")
    made: nn.Module = getattr(nn, short)()
    return made
