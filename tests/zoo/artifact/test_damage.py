"""A damaged artifact is refused by its file: the stress script of the same name, in small."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from stress.damage import problems
from twins import VOCABULARY, twin
from zoo_compress import apply

import zoo
from zoo.errors import ArtifactError

pytestmark = pytest.mark.quick


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


def test_what_plain_transformers_would_load_is_refused_without_its_manifest(tmp_path: Path):
    twin("llama").save_pretrained(tmp_path / "plain")
    saved = zoo.load(tmp_path / "plain").save(tmp_path / "saved")
    saved.rename(tmp_path / "plain" / "saved")  # a whole model below a plain one is not a part of it
    assert zoo.load(tmp_path / "plain").params
    (tmp_path / "plain" / "saved").rename(saved)
    (saved / "zoo.json").unlink()
    with pytest.raises(
        ArtifactError, match=r"saved/zoo\.json is missing, the manifest that model\.safetensors was saved with"
    ):
        zoo.load(saved)
