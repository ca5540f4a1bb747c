"""Twins: H2OVL at test size, with every ratio and quirk of it, over the small vocabulary of the packaged model.

Kept are the decoder, query heads per key/value head, the FFNs' share of the widths, pixel shuffle, tiling, tied or not.
Small are layers, heads, head width, tiles, context and vocabulary.
"""

from __future__ import annotations

from typing import Any

from zoo_h2ovl.vocabulary import IMAGE_TOKEN, SIZE

LAYERS, HEADS, GROUPS, HEAD = 4, 4, 2, 8
SIDE, PATCH = 32, 8  # of a tile
CONTEXT = 512  # holds the tokens of the most tiles that an image makes
SPREAD = 0.02  # of the weights that transformers draws, where a config does not say


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """Shrink a config."""
    return {
        **config,
        "force_image_size": SIDE,
        "img_context_token_id": IMAGE_TOKEN,
        "vision_config": _tower(config["vision_config"]),
        "llm_config": _decoder(config["llm_config"]),
    }


def _tower(config: dict[str, Any]) -> dict[str, Any]:
    heads = min(config["num_attention_heads"], HEADS)
    return {
        **config,
        "image_size": SIDE,
        "patch_size": PATCH,
        "num_hidden_layers": min(config["num_hidden_layers"], LAYERS),
        "num_attention_heads": heads,
        "hidden_size": heads * HEAD,
        "intermediate_size": _inner(config, heads * HEAD),
    }


def _decoder(config: dict[str, Any]) -> dict[str, Any]:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    few = min(groups, GROUPS)
    width = few * (heads // groups) * HEAD
    return {
        **config,
        "num_hidden_layers": min(config["num_hidden_layers"], LAYERS),
        "num_attention_heads": few * (heads // groups),
        "num_key_value_heads": few,
        "hidden_size": width,
        "intermediate_size": _inner(config, width),
        # a matrix this wide gives values as large
        "initializer_range": config.get("initializer_range", SPREAD) * (config["hidden_size"] / width) ** 0.5,
        "vocab_size": SIZE,
        "max_position_embeddings": min(config["max_position_embeddings"], CONTEXT),
    }


def _inner(config: dict[str, Any], width: int) -> int:
    """The FFN's width, the same share of the whole width in steps of 8."""
    steps: int = round(config["intermediate_size"] * width / config["hidden_size"] / 8)
    return 8 * max(1, steps)
