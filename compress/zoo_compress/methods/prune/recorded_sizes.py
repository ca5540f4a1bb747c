"""The numbers that modules and configs keep about sizes, brought in line after a cut.

A number changes only where it had the old value, so a name that means something else in some architecture is left
alone. Scaling factors (1 / sqrt(head_dim), embedding scales) are not sizes and never change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from zoo.anatomy.modules import config_of, inside, value_of
from zoo.anatomy.names import EXPERT_WIDTH, FFN_WIDTH, GROUPS, HEADS, KV_HEADS, SPAN, TABLE_WIDTH, WIDTH
from zoo.anatomy.parts import FFN, Attention, Target

# Names that a config maps to its own (`attribute_map`) are reached through the usual one too.
CONFIG_CHANNELS = (*FFN_WIDTH.configs, *EXPERT_WIDTH.configs)
CONFIG_WIDTH = (*WIDTH.configs, *TABLE_WIDTH.configs)


def set_channels(module: nn.Module, target: Target, layers: Sequence[tuple[FFN, int]]) -> None:
    """Record the new FFN width of each layer, and of the config where one number says it all."""
    for ffn, size in layers:
        for part in module.get_submodule(ffn.path).modules():
            _change(part, FFN_WIDTH.modules, ffn.width, size)
    for stack, indices in target.picks:
        own = [(ffn, size) for ffn, size in layers if inside(ffn.path, stack.path)]
        if len(indices) < len(stack.blocks) or len({size for _, size in own}) > 1:
            continue
        config = config_of(module, stack.path)
        for ffn, size in own:
            _change(config, CONFIG_CHANNELS, ffn.width, size)
        if config is not None and getattr(config, "n_inner", 0) is None:  # GPT-2 derives it from the width
            config.n_inner = own[0][1]


def set_heads(module: nn.Module, target: Target, layers: Sequence[tuple[Attention, tuple[int, int]]]) -> None:
    """Record the new (heads, kv_heads) of each layer, and of the config where one pair says it all."""
    for layer, (heads, kv_heads) in layers:
        for part in module.get_submodule(layer.path).modules():
            _change(part, HEADS.modules, layer.heads, heads)
            _change(part, KV_HEADS.modules, layer.kv_heads, kv_heads)
            _change(part, GROUPS.modules, layer.heads // layer.kv_heads, heads // kv_heads)
            if not isinstance(getattr(part, "out_features", None), int):
                _change(part, SPAN.modules, layer.heads * layer.head_dim, heads * layer.head_dim)
    for stack, indices in target.picks:
        config = config_of(module, stack.path)
        own = [(layer, sizes) for layer, sizes in layers if inside(layer.path, stack.path)]
        if config is not None and len(indices) == len(stack.blocks) and len({sizes for _, sizes in own}) == 1:
            layer, (heads, kv_heads) = own[0]
            _set_config_heads(config, layer, heads, kv_heads)
            continue
        for layer, (heads, kv_heads) in own if config is not None else ():
            _own_config(module.get_submodule(layer.path), layer, heads, kv_heads)


def set_width(module: nn.Module, target: Target, towers: Sequence[str], new: int) -> None:
    """Record the new residual width in every module outside the other `towers`, and in the config."""
    old, blocks = target.stack.width, target.stack.blocks
    layers = [block.attention for block in blocks if block.attention]
    spans = {layer.path for layer in layers if layer.heads * layer.head_dim == old}
    for path, part in module.named_modules():
        if any(inside(path, tower) for tower in towers):
            continue
        names = WIDTH.modules
        if any(inside(path, span) for span in spans):  # there the same names mean all heads together
            names = tuple(name for name in WIDTH.modules if name not in SPAN.modules)
        _change(part, names, old, new)
    config = config_of(module, target.stack.path)
    if config is None:
        return
    if getattr(config, "n_inner", 0) is None and (ffn := next((b.ffn for b in blocks if b.ffn), None)):
        config.n_inner = ffn.width
    _change(config, CONFIG_WIDTH, old, new)
    if layers:
        _say_head_size(config, layers[0].head_dim)


def _set_config_heads(config: Any, layer: Attention, heads: int, kv_heads: int) -> None:
    _change(config, HEADS.configs, layer.heads, heads)
    _change(config, KV_HEADS.configs, layer.kv_heads, kv_heads)
    _say_head_size(config, layer.head_dim)


def _say_head_size(config: Any, head_dim: int) -> None:
    """Write the head size down where the config does not give it, and it no longer is width / heads."""
    width, heads = (value_of(config, name) for name in ("hidden_size", "num_attention_heads"))
    if isinstance(getattr(type(config), "head_dim", None), property) or not width or not heads:
        return
    if "head_dim" in (getattr(config, "per_layer_attributes", None) or ()):  # each layer says its own
        return
    if (getattr(config, "head_dim", None) or width // heads) != head_dim:
        config.head_dim = head_dim


def _own_config(attention: nn.Module, layer: Attention, heads: int, kv_heads: int) -> None:
    """Give a fused attention that reads head counts from the shared config (Phi-3) a config of its own."""
    if layer.q.path != layer.k.path:
        return
    for part in attention.modules():
        if getattr(part, "config", None) is not None:
            own = copy.copy(part.config)
            _set_config_heads(own, layer, heads, kv_heads)
            part.config = own


def _change(holder: Any, names: Iterable[str], old: int, new: int) -> None:
    for name in names:
        value = value_of(holder, name)
        if isinstance(value, int) and not isinstance(value, bool) and value == old:
            setattr(holder, name, new)
