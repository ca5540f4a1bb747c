"""Training reads the body and applies the head to chosen rows: that must be what the whole model says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from twins import TWINS, tokens, twin
from zoo_slm.language import TransformersText

pytestmark = pytest.mark.quick

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# architectures that scale their logits
SCALED = {
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SMALL, logits_scaling=8.0, tie_word_embeddings=False)
    ),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SMALL, logit_scale=0.25)),
}


@pytest.mark.parametrize("name", [*TWINS, *SCALED])
def test_the_head_on_the_body_is_the_model(name: str):
    module: Any = SCALED[name]().eval() if name in SCALED else twin(name)
    split = TransformersText().body_and_head(module)
    if split is None:
        assert name == "bert"  # whose head has layers of its own
        return
    body, head = split
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(head(body(input_ids=ids, use_cache=False).last_hidden_state), module(ids).logits)
