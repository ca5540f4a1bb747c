"""LongRoPE: past the original context the frequencies change, and what a cache holds no longer fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zoo_slm.language import TransformersText

from zoo.catalog import ModelSpec
from zoo.family.text.generate import next_together, next_tokens
from zoo.family.text.shape import frequency_switches
from zoo.model.model import Model, build_random

ORIGINAL, CONTEXT = 16, 64
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8, "rope_theta": 10000.0}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": ORIGINAL,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": LONG},
    "llama": {"rope_parameters": {**LONG, "original_max_position_embeddings": ORIGINAL}},
    "phimoe": {
        "rope_parameters": {
            **LONG,
            "original_max_position_embeddings": ORIGINAL,
            "short_mscale": 1.1,
            "long_mscale": 1.6,
        },
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}


def model_of(kind: str) -> Model:
    config = {"model_type": kind, **SHAPE, **KINDS[kind]}
    spec = ModelSpec(
        name=kind, family="transformers", modality="text", task="causal-lm", plugin="zoo_slm", config=config
    )
    return build_random(TransformersText(), spec)


def uncached(model: Model, ids: list[int], count: int) -> list[int]:
    read = list(ids)
    with torch.no_grad():
        for _ in range(count):
            logits = model.module(input_ids=torch.tensor([read]), use_cache=False).logits
            read.append(int(logits[0, -1].argmax()))
    return read[len(ids) :]


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [6, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 20])
def test_text_that_grows_past_the_original_context_is_that_without_a_cache(kind: str, length: int):
    model = model_of(kind)
    assert frequency_switches(model.module) == (ORIGINAL,)
    ids = torch.randint(1, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    assert list(next_tokens(model, ids, 24)) == uncached(model, ids, 24)


def test_prompts_of_one_length_cross_together():
    model = model_of("phi3")
    prompts = torch.randint(1, 320, (2, 10), generator=torch.Generator().manual_seed(0)).tolist()
    together = list(zip(*next_together(model, prompts, 20), strict=True))
    assert [list(tokens) for tokens in together] == [uncached(model, ids, 20) for ids in prompts]


def test_models_without_longrope_switch_nowhere():
    config = {"model_type": "llama", **SHAPE}
    spec = ModelSpec(
        name="llama", family="transformers", modality="text", task="causal-lm", plugin="zoo_slm", config=config
    )
    assert frequency_switches(build_random(TransformersText(), spec).module) == ()
