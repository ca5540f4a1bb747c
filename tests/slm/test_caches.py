"""A cache that does not keep what was read, or is not there, is not used: text is that of whole passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from stages import apply
from zoo_slm.language import TransformersText

from zoo.catalog import ModelSpec
from zoo.family.text.generate import next_together, next_tokens
from zoo.model.model import Model
from zoo.model.trial import runs

SIZES: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SIZES, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Forgetful(transformers.LlamaForCausalLM):
    """With a cache it counts positions anew."""

    def forward(self, *args: Any, cache: Any = None, **more: Any) -> Any:
        if cache is not None:
            more["position_ids"] = torch.zeros_like(more["input_ids"])
        return super().forward(*args, cache=cache, **more)


def without_a_cache() -> dict[str, Any]:
    return {
        "openai-gpt": transformers.OpenAIGPTLMHeadModel(
            transformers.OpenAIGPTConfig(**SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        ),
        "rwkv": transformers.RwkvForCausalLM(
            transformers.RwkvConfig(**SIZES, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
        ),
        "wrong": Forgetful(transformers.LlamaConfig(**LLAMA)),
    }


def model_of(module: Any) -> Model:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    spec = ModelSpec(
        name="m",
        family="transformers",
        modality="text",
        task="causal-lm",
        plugin="zoo_slm",
        config=module.config.to_dict(),
    )
    return Model(module.eval(), TransformersText(), spec)


def whole(model: Model, ids: list[int], count: int) -> list[int]:
    read = list(ids)
    with torch.no_grad():
        for _ in range(count):
            read.append(int(model.module(input_ids=torch.tensor([read])).logits[0, -1].argmax()))
    return read[len(ids) :]


@pytest.mark.parametrize("name", ["openai-gpt", "rwkv", "wrong"])
def test_text_is_that_of_whole_passes(name: str):
    model = model_of(without_a_cache()[name])
    ids = [5, 6, 7, 8]
    assert not model.family.caches(model)  # type: ignore[attr-defined]
    assert list(next_tokens(model, ids, 8)) == whole(model, ids, 8)


def test_prompts_of_two_lengths_read_anew_are_as_alone():
    model = model_of(without_a_cache()["openai-gpt"])
    prompts = [[5, 6, 7, 8], [9, 10]]
    together = list(zip(*next_together(model, prompts, 6), strict=True))
    assert [list(tokens) for tokens in together] == [whole(model, ids, 6) for ids in prompts]


def test_a_cache_that_keeps_what_was_read_is_used():
    model = model_of(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)))
    assert model.family.caches(model)  # type: ignore[attr-defined]
    assert list(next_tokens(model, [5, 6, 7], 8)) == whole(model, [5, 6, 7], 8)


def test_a_stage_is_not_blamed_for_a_cache_that_was_never_right():
    """ProphetNet's is as far off before, within what half precision may round, as to be taken for right."""
    layers = {f"num_{side}_{name}": 4 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    more = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_buckets": 8, "max_position_embeddings": 64}
    sizes: dict[str, Any] = {**SIZES, **layers, **more, "vocab_size": 320, "hidden_size": 32}
    config = transformers.ProphetNetConfig(**sizes, decoder_start_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: Any = transformers.ProphetNetForConditionalGeneration(config).eval().to(torch.bfloat16)
    spec = ModelSpec("m", "transformers", "text", "seq2seq", plugin="zoo_slm", config=config.to_dict())
    model = Model(module, TransformersText(), spec, dtype="bfloat16", stored="bfloat16")
    assert not model.family.caches(model)  # type: ignore[attr-defined]
    assert runs(model) == "in steps"
    apply(model, "inherit", {"layers": "first:2"})
