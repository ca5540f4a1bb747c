"""The pictures: the same whenever they are drawn, splits apart, and a sentence where a package is missing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from zoo_h2ovl import glyphs
from zoo_h2ovl.data import COUNTS, Digits, Glyphs, Reading, digits

from zoo.data.open import open_data
from zoo.errors import DataError

pytest.importorskip("sklearn")


def test_records_follow_from_their_index_alone():
    one = [Reading().records("train")[i] for i in (0, 7, 39_999)]
    before = random.getstate(), np.random.get_state()[1].tolist()
    other = [Reading().records("train")[i] for i in (39_999, 7, 0)][::-1]
    for a, b in zip(one, other, strict=True):
        assert a.where == b.where
        assert np.array_equal(a.fields["image"], b.fields["image"])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_every_record_is_a_question_about_a_picture():
    for source in (Digits(), Glyphs(), Reading()):
        for split in source.splits:
            for sample in source.records(split)[:12]:
                fields = sample.fields
                assert fields["image"].dtype == np.uint8 and fields["image"].ndim == 2
                assert fields["prompt"].endswith("?") and 1 <= len(fields["text"]) <= glyphs.LONGEST


def test_a_slice_draws_only_what_it_holds(monkeypatch):
    drawn = []
    draw = glyphs.draw_record
    monkeypatch.setattr(glyphs, "draw_record", lambda *place: drawn.append(place) or draw(*place))
    assert len(open_data("glyphs:train[10:14]")) == 4
    assert drawn == [("train", index) for index in range(10, 14)]


def test_test_strings_are_never_drawn_for_training():
    rng = random.Random(0)
    assert not any(glyphs.held_out(glyphs.random_text(rng, new=False)) for _ in range(500))
    assert all(glyphs.held_out(glyphs.random_text(rng, new=True)) for _ in range(50))
    assert not any(glyphs.held_out(character) for character in glyphs.CHARACTERS)


def test_held_out_fonts_are_seen_nowhere_else():
    fonts = {split: {sample.fields["font"] for sample in Glyphs().records(split)[:80]} for split in Glyphs.splits}
    assert fonts["fonts"] == set(glyphs.HELD_OUT_FONTS)
    assert fonts["train"] | fonts["test"] == set(glyphs.TRAINING_FONTS)


def test_digits_are_split_with_all_ten_in_both_parts():
    train, test = (digits(split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert 0.15 < len(test) / 1797 < 0.25
    assert {digit for _, digit in train} == {digit for _, digit in test} == set(range(10))
    seen = {image.tobytes() for image, _ in train}
    assert not any(image.tobytes() in seen for image, _ in test)


def test_reading_mixes_digits_and_strings():
    kinds = [sample.fields["kind"] for sample in Reading().records("train")[:20]]
    assert kinds.count("digit") == 4
    assert {sample.text for sample in Reading().records("characters")[:200]} >= set("ABC789")
    tests = Reading().records("test")
    assert len(tests) == len(digits("test")) + COUNTS["test"] + COUNTS["fonts"]
    assert [tests[i].fields["kind"] for i in (0, len(digits("test")), len(tests) - 1)] == ["digit", "glyph", "new font"]


def test_a_missing_font_is_one_sentence():
    with pytest.raises(DataError, match=r"need the fonts of font-absent: pip install 'zoo-compress\[images\]'\.$"):
        glyphs.font_files("font-absent")
