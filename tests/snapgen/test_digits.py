"""Digits with captions, and the words they are written in."""

from __future__ import annotations

import numpy as np
import pytest
from zoo_snapgen.data import DIGITS, WORDS, DigitsCaptions, caption, describe, enlarge
from zoo_snapgen.text import word_tokenizer

from zoo.data.open import open_data
from zoo.testing import random_state_kept

pytestmark = pytest.mark.quick


def stroke(slant: float = 0.0, thick: int = 1) -> np.ndarray:
    """A line from top to bottom, moving `slant` columns right with each row up."""
    image = np.zeros((8, 8))
    for row in range(8):
        left = round(3 + slant * (3.5 - row))
        image[row, left : left + thick] = 1
    return image


def test_splits_are_stratified_and_do_not_overlap():
    train, test = (list(DigitsCaptions().records(split)) for split in DigitsCaptions.splits)
    assert (len(train), len(test)) == (1442, 355)
    assert not {sample.where for sample in train} & {sample.where for sample in test}
    counts = [sum(sample.fields["digit"] == digit for sample in test) for digit in DIGITS]
    assert counts == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]


def test_records_are_the_same_every_time_and_leave_the_random_state_alone():
    with random_state_kept("digits-captions"):
        first = open_data("digits-captions:test")
    assert first.fingerprint == open_data("digits-captions:test").fingerprint
    assert first[0].fields["image"].shape == (32, 32)
    assert first[0].fields["image"].dtype == np.uint8


def test_attributes_are_measured_in_the_image():
    assert describe(stroke())["ink"] == "thin"
    assert describe(stroke(thick=4))["ink"] == "thick"
    assert describe(stroke(slant=0.4))["slant"] == "right"
    assert describe(stroke(slant=-0.4))["slant"] == "left"
    assert describe(stroke())["slant"] == ""
    assert describe(stroke())["width"] == "narrow"
    assert describe(np.ones((8, 8)))["width"] == "wide"


@pytest.mark.parametrize(
    ("digit", "about", "text"),
    [
        (7, {}, "a seven"),
        (8, {}, "an eight"),
        (8, {"ink": "thin"}, "a thin eight"),
        (7, {"ink": "thin", "width": "narrow", "slant": "right"}, "a thin narrow seven leaning right"),
    ],
)
def test_captions_read_as_english(digit: int, about: dict[str, str], text: str):
    assert caption(digit, **about) == text


def test_captions_use_the_vocabulary_and_fit_the_tokenizer():
    captions = {sample.text for split in DigitsCaptions.splits for sample in DigitsCaptions().records(split)}
    assert {word for text in captions for word in text.split()} == set(WORDS)
    tokenizer = word_tokenizer(WORDS, length=12)
    assert max(len(tokenizer(text)["input_ids"]) for text in captions) <= 12
    assert tokenizer.unk_token_id not in {token for text in captions for token in tokenizer(text)["input_ids"]}


def test_enlarged_images_keep_ink_and_a_margin():
    big = enlarge(stroke(thick=4))
    assert not big[:2].any() and not big[:, -2:].any()
    assert big[16, 16] > 200


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [2, 3]),
        ("A SEVEN!", [2, 4, 17, 3]),
        ("á sëven", [2, 4, 17, 3]),
        ("a purple 七 \u0000", [2, 4, 1, 1, 1, 3]),
    ],
)
def test_tokenizer_takes_any_text(text: str, ids: list[int]):
    assert word_tokenizer(WORDS, length=12)(text)["input_ids"] == ids
