"""A toy of the family: two blocks a stack, width 32, random weights; and pictures to ask it about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from zoo_h2ovl.family import H2OVLFamily

from zoo import catalog
from zoo.data.dataset import Dataset, Sample
from zoo.model.model import Model, build_random


def config(**changes: Any) -> dict[str, Any]:
    """The config of tiny-vlm, smaller; `changes` are of its top level."""
    whole = catalog.info("tiny-vlm").config
    vision = {
        **whole["vision_config"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    language = {
        **whole["llm_config"],
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return {**whole, "vision_config": vision, "llm_config": language, **changes}


def toy(**changes: Any) -> Model:
    spec = replace(catalog.info("tiny-vlm"), config=config(**changes), packaged="", params=0)
    return build_random(H2OVLFamily(), spec)


def picture(width: int = 32, height: int = 32, *, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def records() -> Dataset:
    """Five questions about pictures of several shapes: one tile, three, five."""
    shapes = [(32, 32), (64, 32), (30, 90), (128, 32), (40, 44)]
    made = [
        {
            "image": picture(*shape, seed=i),
            "prompt": "What does it say?",
            "text": "7Q" * (i % 3 + 1),
            "kind": "glyph",
            "font": f"font {i % 2}",
        }
        for i, shape in enumerate(shapes)
    ]
    return Dataset("records", [Sample(fields, f"records:{i}") for i, fields in enumerate(made)])
