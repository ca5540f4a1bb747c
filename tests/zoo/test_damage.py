"""A damaged artifact is refused by its file: the stress script of the same name, in small."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from stress.damage import problems
from twins import VOCABULARY, twin
from zoo_compress import apply

import zoo


def saved(folder: Path, *, width: int) -> Path:
    twin("llama", hidden_size=width, vocab_size=VOCABULARY).save_pretrained(folder / "plain")
    model = zoo.load(folder / "plain")
    apply(model, "quantize.int8")
    return model.save(folder / "saved")


def test_every_damage_of_every_file_is_refused_by_name(tmp_path: Path):
    counts: Counter[str] = Counter()
    made, other = saved(tmp_path / "a", width=32), saved(tmp_path / "b", width=64)
    found = list(problems(made, other, cuts=8, flips=60, draw=random.Random(0), counts=counts))
    assert not found, found[:3]
    assert {"zoo.json flipped", "model.safetensors truncated", "README.md deleted", "zoo.json swapped"} <= counts.keys()
