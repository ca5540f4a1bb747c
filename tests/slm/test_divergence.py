"""Divergence from the original against a reference written out by hand: whole logits of both, in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import apply, small, tokenizer
from test_seq2seq import lively
from zoo_slm import divergence
from zoo_slm.divergence import Divergence

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.evaluation.figures import measure
from zoo.model.context import Context
from zoo.model.model import Model

WORDS = [f"w{3 + (7 * i * i) % 90}" for i in range(60)]
TEXTS = Dataset("texts", [Sample({"text": " ".join(WORDS[:41])}, "t:1"), Sample({"text": " ".join(WORDS[30:])}, "t:2")])
LENGTH = 16


def made(name: str) -> Model:
    if name in ("t5", "bart"):
        return lively(name)
    model = small(name)
    if name == "bert":
        model.processor.add_special_tokens({"mask_token": "w95"})
    return model


def quantized(model: Model, folder: Path) -> tuple[Model, Model]:
    """The original, saved and loaded, and what 4 bits make of it."""
    model.save(folder / "original")
    return zoo.load(folder / "original"), apply(zoo.load(folder / "original"), "quantize.nf4", {}, Context())


def pieces(model: Model, text: str) -> list[list[int]]:
    """The tokens of a text in windows, without what leads them."""
    ids = model.processor(text, add_special_tokens=False)["input_ids"]
    return [ids[start : start + LENGTH - 1] for start in range(0, len(ids), LENGTH - 1)]


@torch.no_grad()
def whole(model: Model, piece: list[int], draw: torch.Generator) -> torch.Tensor:
    """Log-probabilities of the tokens of a window (R, V), from all of its logits at once."""
    if model.spec.task == "seq2seq":
        half = len(piece) // 2
        begin = model.spec.config["decoder_start_token_id"]
        decoder = torch.tensor([[begin, *piece[half:-1]]])
        logits = model.module(input_ids=torch.tensor([piece[:half]]), decoder_input_ids=decoder).logits[0]
    elif model.spec.task == "masked-lm":
        ids = torch.tensor([model.processor.eos_token_id, *piece])
        hidden = torch.rand(len(ids), generator=draw) < 0.15
        hidden[0] = False
        logits = model.module(input_ids=ids.masked_fill(hidden, 95)[None]).logits[0][hidden]
    else:
        logits = model.module(input_ids=torch.tensor([[model.processor.eos_token_id, *piece]])).logits[0, :-1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert", "t5", "bart"])
def test_it_is_the_divergence_of_whole_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, model = quantized(made(name), tmp_path)
    kl, same = [], []
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    for sample in TEXTS:
        for piece in pieces(model, sample.text):
            mine, theirs = whole(model, piece, draws[0]), whole(original, piece, draws[1])
            kl.append((theirs.exp() * (theirs - mine)).sum(-1))
            same.append(mine.argmax(-1) == theirs.argmax(-1))
    expected, agreement = torch.cat(kl).numpy(), torch.cat(same).double().numpy()
    monkeypatch.setattr(divergence, "CHUNK_BYTES", 3 * 4 * 96)  # three rows at a time
    found = measure("divergence", model, TEXTS, options={"length": LENGTH})
    assert found["kl"]["value"] == pytest.approx(expected.mean(), rel=1e-4) and expected.mean() > 1e-5
    assert found["kl_q99"]["value"] == pytest.approx(np.quantile(expected, 0.99), rel=1e-4)
    assert found["top1_agreement"]["value"] == pytest.approx(100 * agreement.mean())
    for figure in found.values():
        assert figure["of"] == "windows" and figure["n"] == sum(len(one) > 0 for one in kl)
        assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "t5"])
def test_the_head_is_asked_for_a_piece_at_a_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, model = quantized(made(name), tmp_path)
    seen: list[int] = []
    heads: Any = [one.module.get_output_embeddings() for one in (original, model)]
    monkeypatch.setattr(divergence, "CHUNK_BYTES", 3 * 4 * 96)
    monkeypatch.setattr(divergence, "original_of", lambda *_, **__: original)  # the one that is watched
    for head in heads:
        head.register_forward_hook(lambda _head, _inputs, logits: seen.append(logits.numel() // logits.shape[-1]))
    family: Any = model.family
    family.body_and_head(model.module)  # asks the whole of eight tokens once
    seen.clear()
    measure("divergence", model, TEXTS, options={"length": LENGTH})
    assert seen and max(seen) <= 3


def test_an_original_does_not_diverge_from_itself(tmp_path: Path):
    small("llama").save(tmp_path / "original")
    found = measure("divergence", zoo.load(tmp_path / "original"), TEXTS, options={})
    assert [found[key]["value"] for key in ("kl", "kl_q99", "top1_agreement")] == [0, 0, 100]


def test_a_prompt_is_read_and_not_measured(tmp_path: Path):
    _, model = quantized(small("llama"), tmp_path)
    text, prompt = " ".join(WORDS[10:20]), " ".join(WORDS[:10])
    alone, asked = (
        Divergence().measure(model, Dataset("d", [Sample(fields, "d:1")]), options={})["kl"]["value"]
        for fields in ({"text": f"{prompt} {text}"}, {"text": text, "prompt": prompt})
    )
    first = Divergence().measure(model, Dataset("d", [Sample({"text": prompt}, "d:1")]), options={})["kl"]["value"]
    assert asked == pytest.approx(2 * alone - first, rel=1e-4)


def test_what_cannot_be_compared_is_refused(tmp_path: Path):
    _, model = quantized(small("llama"), tmp_path)
    with pytest.raises(DataError, match="divergence needs test data"):
        measure("divergence", model, None, options={})
    with pytest.raises(RequestError, match="divergence is for text models"):
        Divergence().check(zoo.load("tiny-t2i", device="meta"), TEXTS)
    model.processor = replace_word(tokenizer())
    sentence = (
        "divergence compares distributions over one vocabulary: token 7 is 'other' to llama and 'w7' to its original "
        "llama. Measure perplexity, whose bits per byte are comparable between tokenizers."
    )
    for refuse in (Divergence().check, lambda model, data: Divergence().measure(model, data, options={})):
        with pytest.raises(RequestError) as refused:
            refuse(model, TEXTS)
        assert str(refused.value) == sentence


def replace_word(processor: Any) -> Any:
    """The tokenizer with another word for token 7."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(processor.backend_tokenizer.to_str().replace('"w7"', '"other"'))
    return type(processor)(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def test_it_can_be_asked_for_by_name():
    assert isinstance(registry.evaluator("divergence"), Divergence)


def test_a_model_that_sees_is_compared_on_texts_too():
    model = apply(zoo.load("tiny-vlm"), "quantize.nf4", {}, Context())
    texts = Dataset("texts", [Sample({"text": "which letter is it? a b c d"}, "t:1")])
    found = measure("divergence", model, texts, options={})
    assert 0 < found["kl"]["value"] < found["kl_q99"]["value"]
