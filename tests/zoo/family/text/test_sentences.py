"""Embedding as a task of texts: sentences as windows, padded under a mask; what is learnt of them and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentences import DENSE, SENTENCES, WIDTH, plain_folder, sentence_folder, tokenizer
from stages import tokenizer as other_tokenizer
from zoo_compress.calibrate.watch import watch

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, Refused
from zoo.family.task import task_of
from zoo.model.context import Context

TEXTS = Dataset("texts", [Sample({"text": text}, f"texts:{i}") for i, text in enumerate(SENTENCES)])
PAIRS = Dataset("pairs", [Sample({"sentence1": "w5 w6", "sentence2": "w7"}, "pairs:0")])
TRAINING = {"steps": 2, "batch": 3, "warmup": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return zoo.load(plain_folder(tmp_path_factory.mktemp("encoder") / "bert"))


def test_each_sentence_is_a_window_with_its_special_tokens(encoder):
    windows = encoder.family.windows(encoder, TEXTS, length=256)
    assert [window["input_ids"].tolist() for window in windows] == [
        tokenizer()(text)["input_ids"] for text in SENTENCES
    ]
    assert windows.where(2) == "texts:2"
    both = encoder.family.windows(encoder, PAIRS, length=256)
    assert [window["input_ids"].tolist() for window in both] == [[2, 5, 6, 3], [2, 7, 3]] and both.where(1) == "pairs:0"


def test_padding_changes_no_vector_and_is_not_calibrated_on(encoder):
    windows = encoder.family.windows(encoder, TEXTS, length=256)
    batch = encoder.family.collate(encoder, list(windows))
    assert batch["input_ids"].shape == (5, 9) and batch["attention_mask"].sum() == sum(map(len, windows.ids))
    with torch.no_grad():
        together = encoder.family.forward(encoder, batch)
        alone = torch.cat([encoder.family.forward(encoder, encoder.family.collate(encoder, [w])) for w in windows])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-4)
    seen = []
    path = encoder.anatomy.stacks["language"].blocks[0].path
    watch(encoder, [batch], {path: lambda read, *_: seen.append(read.shape)})
    assert seen == [(1, sum(map(len, windows.ids)), WIDTH)]


def test_a_prompt_that_does_not_count_is_read_and_not_pooled(tmp_path):
    settings = {"prompts": {"q": "w30 w31 "}, "default_prompt_name": "q"}
    model = zoo.load(sentence_folder(tmp_path / "m", settings=settings, pooling={"include_prompt": False}))
    window = model.family.windows(model, TEXTS, length=256)[0]
    assert window["input_ids"].tolist() == [2, 30, 31, 5, 6, 7, 3]
    assert window["pooling_mask"].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_distil_learns_vectors_and_widths_may_differ_where_relations_are_learnt(encoder, tmp_path):
    distill = registry.compressor("distill")
    narrow = zoo.load(sentence_folder(tmp_path / "narrow", after=[DENSE]))
    context = Context(data={"train": TEXTS}, load=lambda _: encoder.copy())
    with pytest.raises(Refused, match="the student's have 16 numbers, the teacher's 32"):
        narrow.copy().apply(distill, distill.Options(**TRAINING), context)
    narrow.apply(distill, distill.Options(**TRAINING, loss=[{"use": "rkd"}]), context)
    assert context.curves["rkd"][0][1] > 0
    other = encoder.copy()
    other.processor = other_tokenizer()
    with pytest.raises(Refused, match="distill gives both models the same tokens: token 0 is"):
        distill.check_teacher(other, encoder)
    with pytest.raises(Refused, match="compares vectors, and the teacher tiny-code is of task causal-lm"):
        distill.check_teacher(encoder, zoo.load("tiny-code", device="meta"))


def test_samples_name_the_nearest_sentences(encoder):
    (answer,) = task_of(encoder).samples(encoder, [SENTENCES[0]], TEXTS)
    lines = [line.split("  ") for line in answer["output"].splitlines()]
    vectors = encoder.generate(list(SENTENCES))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ranked = sorted(range(1, 5), key=lambda i: -vectors[i] @ vectors[0])[:3]
    assert [text for _, text in lines] == [SENTENCES[i] for i in ranked]
    assert float(lines[0][0]) == pytest.approx(float(vectors[ranked[0]] @ vectors[0]), abs=1e-3)
    assert task_of(encoder).samples(encoder, [SENTENCES[0]], None) == []


def test_records_that_are_no_sentences_are_named(encoder):
    for fields, sentence in (
        ({"text": "w5", "prompt": "w6"}, "odd:0: the record has a 'prompt', which is no part of a sentence"),
        ({"sentence1": "w5"}, "odd:0: no field 'text'"),
    ):
        with pytest.raises(DataError, match=sentence):
            encoder.family.windows(encoder, Dataset("odd", [Sample(fields, "odd:0")]), length=8)
