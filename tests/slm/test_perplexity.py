"""Bits per byte against a reference written out by hand: every byte once, whatever the length of a window."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from stages import small
from tiny import tokenizer
from zoo_slm.evaluators import Perplexity

from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError
from zoo.model.model import Model

TEXTS = {
    "latin": "the cat and the other cat",
    "german": "Größer als drei Äpfel, süß",
    "chinese": "机器学习很有意思。",
    "hindi": "नमस्ते दुनिया",
    "emoji": "a👩‍💻b🎉",
    "mixed": "x é 你 🎉 ж\n",
}
LENGTHS = (2, 3, 4, 7, 16, 64)


def model_with(processor: Any, name: str = "llama") -> Model:
    model = small(name, vocab_size=max(320, len(processor)))
    model.processor = processor
    return model


def fallback() -> Any:
    """Pieces as Llama 2 has them: words begin with ▁, and what is unknown falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghinort"]
    made = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(letters)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def nats(model: Model, ids: list[int], lead: int, length: int, *, given: int = 0) -> tuple[float, int]:
    """Sum of -log p of all tokens but the first `given`, a window at a time, and how many they are."""
    total, count = 0.0, 0
    for start in range(0, len(ids), length - 1):
        window = [lead, *ids[start : start + length - 1]]
        with torch.no_grad():
            chances = model.module(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)
        for place in range(1, len(window)):
            if start + place > given:
                total, count = total - float(chances[place - 1, window[place]]), count + 1
    return total, count


@pytest.mark.quick
@pytest.mark.parametrize("make", [tokenizer, fallback])
@pytest.mark.parametrize("script", TEXTS)
def test_every_byte_is_counted_once_whatever_the_length(script: str, make: Any):
    text, model = TEXTS[script], model_with(make())
    data = Dataset("d", [Sample({"text": text}, "d:1"), Sample({"text": text[::-1]}, "d:2")])
    tokens = [model.processor(sample.text, add_special_tokens=False)["input_ids"] for sample in data]
    lead = model.processor.eos_token_id
    for length in LENGTHS:
        expected = sum(nats(model, ids, lead, length)[0] for ids in tokens) / math.log(2) / (2 * len(text.encode()))
        found = Perplexity().measure(model, data, options={"length": length})["bits_per_byte"]
        assert found["value"] == pytest.approx(expected, rel=1e-5), (script, length)
        assert found["low"] <= found["high"] < math.inf


def test_white_space_between_windows_is_counted():
    """A tokenizer of whole words drops the spaces, whichever window they stand beside."""
    model = small("llama")
    text = "w3  w4 w5\nw6   w7 "
    ids = model.processor(text, add_special_tokens=False)["input_ids"]
    for length in LENGTHS:
        expected = nats(model, ids, 2, length)[0] / math.log(2) / len(text)
        found = Perplexity().measure(model, Dataset("d", [Sample({"text": text}, "d:1")]), options={"length": length})
        assert found["bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-5), length


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_is_read_and_not_measured(length: int):
    model, prompt, text = model_with(tokenizer()), "größer? ", "你 and the cat"
    parts = [model.processor(part, add_special_tokens=False)["input_ids"] for part in (prompt, text)]
    total, count = nats(model, parts[0] + parts[1], 0, length, given=len(parts[0]))
    assert count == len(parts[1])
    data = Dataset("d", [Sample({"prompt": prompt, "text": text}, "d:1")])
    found = Perplexity().measure(model, data, options={"length": length})
    assert found["bits_per_byte"]["value"] == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(
    "prompt", ["not a ", "eight"]
)  # after the first nothing begins with ▁, as the answer alone does
def test_nothing_stands_between_a_prompt_and_its_answer(prompt: str):
    """Pieces of Llama 2 alone begin a text with a space."""
    model = model_with(fallback())
    data = Dataset("d", [Sample({"prompt": prompt, "text": "hat 你"}, f"d:{i}") for i in range(2)])
    ids = [model.processor.convert_tokens_to_ids(piece) for piece in "hat▁"] + model.processor(
        "你", add_special_tokens=False
    )["input_ids"][1:]
    windows = model.family.windows(model, data, length=8)
    asked = [int(label) for window in windows for label in window["labels"] if label >= 0]
    assert asked[: len(ids)] == ids
    asked_BT = model.processor(prompt, add_special_tokens=False)["input_ids"]
    total, _ = nats(model, asked_BT + ids, 1, 64, given=len(asked_BT))
    found = Perplexity().measure(model, data, options={})["bits_per_byte"]
    assert found["value"] == pytest.approx(total / math.log(2) / len("hat 你".encode()), rel=1e-5)


@pytest.mark.quick
def test_training_loses_on_the_answer_alone():
    model = model_with(tokenizer())
    records = [("Q: cat? ", "yes"), (None, "the cat"), ("Q: dog? ", "no"), ("", "and"), ("a", "")]
    data = Dataset("d", [Sample({"prompt": p, "text": t}, f"d:{i}") for i, (p, t) in enumerate(records)])
    inputs, labels = [], []
    for prompt, text in records:
        asked, answer = (
            [] if not t else model.processor(t, add_special_tokens=False)["input_ids"] for t in (prompt, text)
        )
        inputs += [0, *asked, *answer]
        labels += [0, *[-1] * len(asked), *answer]
    windows = model.family.windows(model, data, length=4)
    held = len(windows) * 4
    assert [int(i) for window in windows for i in window["input_ids"]] == inputs[:held]
    assert [int(i) for window in windows for i in window["labels"]] == labels[1 : held + 1]
    assert -1 in labels and held > 8
    batch = model.family.collate(model, list(windows))
    rows = model.family.rows(model, batch, ("label",))["label"]
    assert rows.target is not None and rows.target.tolist() == [label for label in labels[1 : held + 1] if label >= 0]


def test_prompts_change_nothing_where_there_are_none():
    model = model_with(tokenizer())
    plain, empty = (
        model.family.windows(model, Dataset("d", [Sample({"text": "the cat " * 9, **more}, "d:1")]), length=8)
        for more in ({}, {"prompt": ""})
    )
    assert all(
        torch.equal(a[key], b[key]) for a, b in zip(plain, empty, strict=True) for key in ("input_ids", "labels")
    )


@pytest.mark.parametrize("task", ["masked-lm", "seq2seq"])
def test_a_task_without_a_place_for_prompts_refuses_them_in_the_plan(task: str):
    model = model_with(tokenizer())
    model.spec = replace(model.spec, task=task)
    data = Dataset("d", [Sample({"text": "a"}, "d:1"), Sample({"prompt": "Q", "text": "a" * 9}, "d:2")])
    sentence = (
        f"d:2: the record has a 'prompt', which llama, a {task} model, cannot be trained or measured on here; write it "
        "into the 'text', or leave it out."
    )
    for refused in (
        lambda: model.family.check_data(model, data, length=1),
        lambda: model.family.windows(model, data, length=4),
        lambda: Perplexity().measure(model, data, options={}),
    ):
        with pytest.raises(DataError) as caught:
            refused()
        assert str(caught.value) == sentence


def test_a_prompt_that_is_no_text_is_refused():
    model = model_with(tokenizer())
    data = Dataset("d", [Sample({"prompt": ["a"], "text": "b"}, "d:1")])
    with pytest.raises(DataError, match="d:1: 'prompt' is list, not text"):
        model.family.windows(model, data, length=4)


def measured(model: Model, text: str, **options: Any) -> dict[str, Any]:
    return Perplexity().measure(model, Dataset("texts", [Sample({"text": text}, "texts:0")]), options=options)


def test_perplexity_has_an_interval_over_windows_and_one_window_none():
    model, text = model_with(tokenizer()), TEXTS["latin"] * 8
    found = measured(model, text, length=16)
    for name in ("bits_per_byte", "perplexity"):
        figure = found[name]
        assert figure["low"] < figure["value"] < figure["high"] and figure["n"] > 5 and figure["of"] == "windows"
    alone = measured(model, TEXTS["latin"], length=64)
    for name in ("bits_per_byte", "perplexity"):
        assert alone[name]["n"] == 1 and not {"low", "high"} & set(alone[name])
    picks = torch.randint(
        0, found["perplexity"]["n"], (1000, found["perplexity"]["n"]), generator=torch.Generator().manual_seed(0)
    )
    ids, lead = model.processor(text)["input_ids"], model.processor.eos_token_id
    each = [nats(model, ids[start : start + 15], lead, 16) for start in range(0, len(ids), 15)]
    drawn = sorted(math.exp(sum(each[i][0] for i in pick) / sum(each[i][1] for i in pick)) for pick in picks.tolist())
    assert found["perplexity"]["low"] == pytest.approx(drawn[25], rel=1e-5)
    assert found["perplexity"]["high"] == pytest.approx(drawn[974], rel=1e-5)
