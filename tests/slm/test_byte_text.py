"""Byte-level models as models of the zoo: trained from a recipe's first stage on, measured, generated from, compressed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_compress.recipe.runner import apply
from zoo_slm.byte_text import ByteText
from zoo_slm.byte_tokenizer import END
from zoo_slm.evaluators import Perplexity

import zoo
from zoo.catalog import ModelSpec
from zoo.data.dataset import Dataset, Sample
from zoo.errors import RequestError
from zoo.model.context import Context
from zoo.model.model import Model, build_random
from zoo.testing import check_estimate

CONFIG: dict[str, Any] = {
    "model_type": "super-tiny-lm",
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_type": "swiglu",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "byte_context_window": 6,
    "byte_embedding_dim": 16,
    "byte_heads": 4,
    "embedder_blocks": 2,
    "decoder_blocks": 1,
    "initializer_range": 0.15,
}
TEXT = "the cat and the other cat "


@pytest.fixture(scope="module")
def data() -> Context:
    words = Dataset("words", [Sample({"text": TEXT * 40}, f"words:{i}") for i in range(2)])
    return Context(data={"train": words, "calibration": words})


@pytest.fixture(scope="module")
def trained(data: Context) -> Model:
    """From nothing: a tokenizer of its own, then a few steps, after which it knows its one sentence."""
    spec = ModelSpec("tiny-bytes", "bytes", "text", "causal-lm", plugin="zoo_slm", config=CONFIG)
    model = apply(build_random(ByteText(), spec), "vocabulary.bpe", {}, data)
    return apply(model, "train", {"steps": 100, "batch": 4, "length": 24, "lr": 5e-3, "warmup": 4}, data)


def test_it_writes_what_it_learnt(trained: Model) -> None:
    written = trained.generate("the cat and the", max_new_tokens=6)
    assert written.startswith(" other cat the cat")
    assert "".join(trained.generate("the cat and the", max_new_tokens=6, stream=True)) == written
    assert trained.generate(["the cat and the", "the cat"], max_new_tokens=6)[0] == written
    assert trained.generate("the cat and the", stop=[" cat"]) == " other"
    assert trained.generate("the cat", temperature=2.0, seed=1) == trained.generate("the cat", temperature=2.0, seed=1)


def test_a_text_ends_with_a_token_that_begins_with_the_end(trained: Model) -> None:
    module: Any = trained.module

    def ends(head: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        forced = logits.clone()
        forced[:, -1, 0, END] = 1e4
        return forced

    hook = module.lm_head.register_forward_hook(ends)
    try:
        assert trained.generate("the cat") == ""
    finally:
        hook.remove()


def test_perplexity_counts_every_slot(trained: Model) -> None:
    """Of the bytes of each token given those before, by hand."""
    held_out = Dataset("held", [Sample({"text": "the cat"}, "held:1")])
    found = Perplexity().measure(trained, held_out, options={})
    tokenizer = trained.family.tokenizer(trained)
    tokens = [tokenizer.end, *tokenizer("the cat")["input_ids"]]
    with torch.no_grad():
        chances = trained.module(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    nats = -sum(
        float(chances[i - 1, slot, byte]) for i, token in enumerate(tokens) for slot, byte in enumerate(token) if i
    )
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / 7, rel=1e-4)


def test_saved_and_loaded_it_writes_the_same(trained: Model, tmp_path: Path) -> None:
    trained.save(tmp_path / "saved")
    loaded = zoo.load(tmp_path / "saved")
    assert loaded.generate("the cat and the") == trained.generate("the cat and the")
    assert isinstance(loaded.family, ByteText)


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("inherit", {"layers": "first:1"}),
        ("prune.structured", {"ffn": 0.25, "heads": 0.5}),
        ("quantize.int8", {}),
        ("share.ffn", {}),
        ("lowrank.svd", {"ratio": 0.5, "samples": 2, "length": 16}),
    ],
)
def test_it_is_compressed_like_any_other(trained: Model, data: Context, use: str, options: dict[str, Any]) -> None:
    smaller = check_estimate(trained.copy(), use, options, data)
    assert isinstance(smaller.generate("the cat", max_new_tokens=2), str)


def test_an_empty_prompt_is_refused(trained: Model) -> None:
    with pytest.raises(RequestError, match="The prompt is empty"):
        trained.generate("")


def test_the_bytes_of_a_prompt_are_no_labels(trained: Model) -> None:
    data = Dataset("asked", [Sample({"prompt": "the cat", "text": " and the other cat"}, "asked:1")])
    window = trained.family.windows(trained, data, length=5)[0]
    tokenizer = trained.family.tokenizer(trained)
    prompt, answer = (tokenizer(text)["input_ids"] for text in ("the cat", " and the other cat"))
    assert window["input_ids"].tolist() == [list(token) for token in [tokenizer.end, *prompt, *answer][:5]]
    expected = [[-1] * len(tokenizer.end)] * len(prompt) + [list(token) for token in answer]
    assert window["labels"].tolist() == expected[:5]
