"""Windows and records begin as the tokenizer begins a text, against a reference written out token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stages import small
from zoo_slm.evaluators import Perplexity

from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError
from zoo.model.model import Model
from zoo.tensors.batch import generators

WORDS = ("<end>", "<bos>", "<two>", "<mask>", *(f"w{i}" for i in range(28)))
RECORDS = ("w1 w2 w3 w4 w5 w6 w7 w8", "w9", "w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20", "w21 w22 w23")


def tokenizer(single: str) -> Any:
    """Words, and what stands around a text as a template has it: "<bos> $A"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w27"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, i) for i, word in enumerate(WORDS[:3])]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", bos_token="<bos>", mask_token="<mask>")


def model_with(single: str, name: str = "llama") -> Model:
    model = small(name)
    model.processor = tokenizer(single)
    return model


def dataset(texts: tuple[str, ...] = RECORDS, **more: Any) -> Dataset:
    return Dataset("d", [Sample({"text": text, **more}, f"d:{i}") for i, text in enumerate(texts)])


def words(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("single", "special"),
    [("$A", ([], [])), ("<bos> $A", ([1], [])), ("<bos> <two> $A <end>", ([1, 2], [0])), ("$A <end>", ([], [0]))],
)
def test_special_tokens_are_those_around_a_text(single: str, special: tuple[list[int], list[int]]):
    model = model_with(single)
    assert model.family.special_tokens(model) == special
    assert model.family.inputs(model, "w5 w6")[0] == [*special[0], *words("w5 w6")]
    assert model.family.inputs(model, "<bos> <two> w5")[0][:2] in ([1, 2], [1, 1])


def test_a_tokenizer_that_knows_no_letter_of_english_begins_texts_all_the_same():
    """Of DNA, and without a token for what is unknown."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: number for number, piece in enumerate(("<end>", "<bos>", "<two>", "A", "C", "G", "T"))}
    made = Tokenizer(models.BPE(pieces, []))
    special = [("<bos>", 1), ("<end>", 0)]
    made.post_processor = processors.TemplateProcessing(single="<bos> $A <end>", special_tokens=special)
    model = small("llama")
    model.processor = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", bos_token="<bos>")
    assert model.processor("a", add_special_tokens=False)["input_ids"] == []
    assert model.family.special_tokens(model) == ([1], [0])
    windows = model.family.windows(model, dataset(("ACGT" * 4,)), length=5)
    assert all(window["input_ids"][0] == 1 for window in windows)


@pytest.mark.quick
@pytest.mark.parametrize("length", [3, 4, 5, 7, 11])
@pytest.mark.parametrize("lead", [[1], [1, 2]])
def test_every_record_and_every_window_begins_as_the_tokenizer_does(lead: list[int], length: int):
    model = model_with(" ".join(WORDS[token] for token in lead) + " $A")
    windows = model.family.windows(model, dataset(), length=length)
    stream, targets = [], []  # a target of -1: what leads a record is not predicted
    for text in RECORDS:
        stream += [*lead, *words(text)]
        targets += [-1] * len(lead) + words(text)
    assert windows.stream.tolist() == stream  # type: ignore[attr-defined]
    place, starts = 0, [0]
    for text in RECORDS:
        starts.append(starts[-1] + len(lead) + len(words(text)))
    for window in windows:
        ids, labels = window["input_ids"].tolist(), window["labels"].tolist()
        assert len(ids) == len(labels) == length and ids[: len(lead)] == lead
        begins = place in starts
        taken = length if begins else length - len(lead)
        assert ids[0 if begins else len(lead) :] == stream[place : place + taken]
        expected = targets[place + 1 : place + taken + 1]
        assert labels == ([] if begins else [-1] * len(lead)) + expected
        place += taken
    assert len(stream) - place <= length  # nothing that would fill a window is left


def test_each_token_is_predicted_once():
    model = model_with("<bos> $A")
    for length in (2, 3, 6, 9):
        windows = model.family.windows(model, dataset(), length=length)
        asked = [int(label) for window in windows for label in window["labels"] if label >= 0]
        whole = [token for text in RECORDS for token in words(text)]
        assert asked == whole[: len(asked)] and len(asked) > len(whole) - length


def test_what_a_text_begins_with_already_is_not_set_twice():
    """A chat template writes <bos> itself."""
    model = model_with("<bos> $A")
    written, plain = (
        model.family.windows(model, dataset(tuple(before + text for text in RECORDS)), length=4)
        for before in ("<bos> ", "")
    )
    assert all(torch.equal(a[key], b[key]) for a, b in zip(written, plain, strict=True) for key in a)
    figures = [
        Perplexity().measure(model, dataset((before + RECORDS[0],)), options={})["perplexity"]["value"]
        for before in ("<bos> ", "")
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("end", ["<end>", "<bos>"])  # of OPT one token begins a text and ends it
def test_an_answer_ends_with_an_end_of_text_from_which_the_model_learns_to_stop(end: str):
    model = model_with("<bos> $A")
    model.processor.eos_token = end
    windows = model.family.windows(model, dataset(prompt="w24 w25"), length=6)
    stream, targets = [], []
    for text in RECORDS:
        stream += [1, *words("w24 w25"), *words(text), WORDS.index(end)]
        targets += [-1] * 3 + [*words(text), WORDS.index(end)]
    assert windows.stream.tolist() == stream  # type: ignore[attr-defined]
    asked = [int(label) for window in windows for label in window["labels"] if label >= 0]
    whole = [target for target in targets if target >= 0]
    assert asked == whole[: len(asked)] and len(asked) > len(whole) - 6


def test_without_special_tokens_an_end_of_text_stands_before_each_record():
    model = model_with("$A")
    windows = model.family.windows(model, dataset(), length=5)
    stream = [token for text in RECORDS for token in [0, *words(text)]]
    assert [window["input_ids"].tolist() for window in windows] == [
        stream[at : at + 5] for at in range(0, len(stream) - 5, 5)
    ]


def test_a_window_that_its_lead_would_fill_is_refused():
    model = model_with("<bos> <two> $A")
    with pytest.raises(DataError, match="fewer than one window"):
        model.family.windows(model, dataset(), length=2)


@pytest.mark.quick
@pytest.mark.parametrize("length", [3, 4, 7, 32])
def test_perplexity_reads_what_the_model_was_trained_on(length: int):
    """Every window after <bos> <two>, and a prompt within it, by hand."""
    model = model_with("<bos> <two> $A")
    prompt, total, count = words("w24 w25"), 0.0, 0
    for text in RECORDS:
        ids = prompt + words(text)
        for start in range(0, len(ids), length - 2):
            window = [1, 2, *ids[start : start + length - 2]]
            with torch.no_grad():
                chances = model.module(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)
            for place in range(2, len(window)):
                if start + place - 2 >= len(prompt):
                    total, count = total - float(chances[place - 1, window[place]]), count + 1
    found = Perplexity().measure(model, dataset(prompt="w24 w25"), options={"length": length})
    assert count == sum(len(words(text)) for text in RECORDS)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_special_tokens_are_never_hidden():
    model = model_with("<bos> $A <end>", "bert")
    family: Any = model.family
    batch = family.collate(model, list(family.windows(model, dataset(), length=6)))
    special = torch.isin(batch["input_ids"], torch.tensor([0, 1]))
    assert special.any()
    hidden = set()
    for seed in range(20):
        drawn = family.draw(model, batch, generators(seed, range(len(batch["input_ids"]))))
        assert torch.equal(drawn["input_ids"][special], batch["input_ids"][special])
        assert not (drawn["labels"][special] >= 0).any() and (drawn["labels"] >= 0).any(1).all()
        hidden |= set(drawn["labels"].unique().tolist())
    assert len(hidden) > 10
