"""Twins: the UNet and the decoder of SnapGen at an eighth of every width, with every ratio and quirk of them.

Kept are stages, heads, kinds of attention, the FFN's share of the widths, and channels of a group. A stage has at most two
transformer blocks, and the latent 8 by 8 positions.
"""

from __future__ import annotations

from typing import Any

import torch

from zoo.errors import RequestError
from zoo_snapgen import classes

SHARE, DEPTH, SIDE = 8, 2, 8


def tiny(config: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Shrink a config.

    Raises:
        RequestError: a component is of another class, or too narrow.
    """
    return {
        **config,
        "components": {part: _tiny(part, dict(own), name=name) for part, own in config["components"].items()},
    }


def _tiny(part: str, own: dict[str, Any], *, name: str) -> dict[str, Any]:
    kind = classes.component_class(own, where=part).__name__
    if kind not in ("SnapGenUNet", "SnapGenDecoder"):
        raise RequestError(
            f"{name} cannot be shrunk: its {part} is a {kind}, and scale = 'tiny' shrinks SnapGen's UNet and decoder."
        )
    with torch.device("meta"):
        full: Any = classes.build_component(own, where=part).config  # with the values that its class adds
    if full.norm_num_groups % SHARE or any(width % (4 * SHARE) for width in full.block_out_channels):
        raise RequestError(f"{name} cannot be shrunk: its {part} has no widths of which an eighth is a width.")
    small = {
        "block_out_channels": [width // SHARE for width in full.block_out_channels],
        "norm_num_groups": full.norm_num_groups // SHARE,
    }
    if kind == "SnapGenUNet":
        small |= {
            "sample_size": min(full.sample_size, SIDE),
            "cross_attention_dim": full.cross_attention_dim // SHARE,
            "transformer_layers_per_block": [min(depth, DEPTH) for depth in full.transformer_layers_per_block],
        }
    return own | small
