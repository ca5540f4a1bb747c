"""Architectures that transformers has no class for: one file each, written here, never the code of a checkpoint.

A new one is a file beside this one, a line in `OWN`, and a line in `PUBLISHED` for the class its checkpoints name. The
file has a config class and a model class of the transformers kind; where published files are laid out in another way it
also has `translated(config)`, and `require_sound(path)` where they may contradict themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.family.text.tasks import TASKS, named_after
from zoo.loading.directory import without_code

# model_type -> the file, its config class, its model class
OWN: dict[str, tuple[str, str, str]] = {
    "mobillama": ("mobillama", "MobiLlamaConfig", "MobiLlamaForCausalLM"),
    "minicpm": ("minicpm", "MiniCPMConfig", "MiniCPMForCausalLM"),
    "phonelm": ("phonelm", "PhoneLMConfig", "PhoneLMForCausalLM"),
    "teleflm": ("teleflm", "TeleFLMConfig", "TeleFLMForCausalLM"),
    "phi3small": ("phi3_small", "Phi3SmallConfig", "Phi3SmallForCausalLM"),
    "slimlm": ("slimlm", "SlimLMConfig", "SlimLMForCausalLM"),
    "super-tiny-lm": ("super_tiny", "SuperTinyConfig", "SuperTinyForCausalLM"),
    "bebeshka": ("bebeshka", "BebeshkaConfig", "BebeshkaForMaskedLM"),
}

# the class that a published config names -> model_type
PUBLISHED = {
    "MobiLlamaForCausalLM": "mobillama",
    "MiniCPMForCausalLM": "minicpm",
    "PhoneLMForCausalLM": "phonelm",
    "TeleFLMForCausalLM": "teleflm",
    "Phi3SmallForCausalLM": "phi3small",
    "MPTForCausalLM": "slimlm",
    "RobertaForMaskedLM": "bebeshka",
}


def _has_learned_positions(config: Mapping[str, Any]) -> bool:
    return bool(config.get("learned_pos_emb")) and not (config.get("attn_config") or config).get("alibi")


def _has_relative_queries(config: Mapping[str, Any]) -> bool:
    return config.get("position_embedding_type") == "relative_key_query"


# what tells ours apart from those of transformers that go by the same published class
APART: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "slimlm": _has_learned_positions,  # transformers' own MPT has ALiBi
    "bebeshka": _has_relative_queries,  # which the RoBERTa of transformers 5 no longer has
}


def own_type(config: Mapping[str, Any]) -> str:
    """The model_type of ours that a config describes, whatever it calls itself; "" where it is none of ours."""
    kind = str(config.get("model_type")).lower()  # Tele-FLM's files say "TeleFLM"
    if kind in OWN:
        return kind
    named = config.get("architectures")
    kind = (
        next((PUBLISHED[name] for name in map(str, named) if name in PUBLISHED), "") if isinstance(named, list) else ""
    )
    return "" if kind in APART and not APART[kind](config) else kind


def adopted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of ours as its config class reads it, and make its classes known to transformers' Auto classes.

    What would bring code along (`auto_map`) is left out: the code is here.
    """
    import transformers

    kind = own_type(config)
    file, config_class, model_class = OWN[kind]
    module = import_module(f"{__name__}.{file}")
    made, auto = getattr(module, config_class), TASKS[named_after(model_class)].auto_class
    transformers.AutoConfig.register(kind, made, exist_ok=True)
    getattr(transformers, auto).register(made, getattr(module, model_class), exist_ok=True)
    values = without_code(config)
    translated = getattr(module, "translated", None)
    return {**(translated(values) if translated else values), "model_type": kind, "architectures": [model_class]}


def require_sound(config: Mapping[str, Any], path: Path) -> None:
    """Refuse published files that contradict themselves, where an architecture can tell.

    Raises:
        ArtifactError: names the tensor.
    """
    check = getattr(import_module(f"{__name__}.{OWN[own_type(config)][0]}"), "require_sound", None)
    if check:
        check(path)
