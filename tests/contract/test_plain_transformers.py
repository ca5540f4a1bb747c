"""What a plain transformers class can represent, plain transformers loads, with the same bits in its logits.

Where the config cannot say the result (a head size that is not width / heads in GPT-NeoX, OPT and BERT; blocks of
different widths; packed, shared or factored layers), no config.json is written, and the card says why.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo_compress
from cases import (
    CALIBRATION,
    HEADS,
    INHERIT,
    INT8,
    LOWRANK,
    MAGNITUDE,
    NF4,
    SHARE,
    TINY,
    WIDTH,
    Stage,
    base,
    context,
    stage,
)

import zoo
from zoo.artifact.manifest import read_manifest
from zoo.model.model import Model

FFN = ("prune.structured", {"ffn": 0.25, **CALIBRATION})
PARTLY = ("prune.structured", {**FFN[1], "target": "language.blocks[1:]"})
EVERY = (TINY, "qwen3", "llama-tied", "gpt-neox", "opt", "bert", "gpt2", "phi3", "mixtral")
OWN_HEAD_SIZE = (TINY, "qwen3", "llama-tied", "phi3", "mixtral")  # configs with a head_dim

PLAIN: list[tuple[tuple[str, ...], list[Stage]]] = [
    (EVERY, []),
    (EVERY, [INHERIT]),
    (EVERY, [FFN]),
    (EVERY, [MAGNITUDE]),
    (OWN_HEAD_SIZE, [HEADS]),
    (OWN_HEAD_SIZE, [WIDTH]),
    (OWN_HEAD_SIZE, [HEADS, INHERIT, MAGNITUDE]),
    ((TINY, "qwen3", "gpt-neox", "opt", "bert"), [INHERIT, FFN]),
]

# (bases, stages, what the card says)
NOT_PLAIN: list[tuple[tuple[str, ...], list[Stage], str]] = [
    (("qwen3", "gpt-neox", "opt", "bert"), [INT8], r"is of class Int8\w+, not \w+"),
    (("qwen3", "opt"), [NF4], r"is of class NF4Linear, not Linear"),
    (("qwen3", "gpt-neox", "opt", "bert"), [SHARE], r"sharing .*; the plain class has"),
    (("qwen3", "gpt-neox", "opt", "bert"), [LOWRANK], r"is of class LowRankLinear, not Linear"),
    (("qwen3", "gpt-neox"), [PARTLY], r"is \(48, 32\).*; the plain class has|is \(\d+.*; the plain class has"),
    (("gpt-neox", "opt", "bert", "gpt2"), [HEADS], r"the plain class has|no plain config"),
]

AUTO = {"causal-lm": "AutoModelForCausalLM", "masked-lm": "AutoModelForMaskedLM"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, loaded = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Model:
        if name not in loaded:
            loaded[name] = base(name, folder)
        return loaded[name]

    return get


def made(start: Model, stages: list[Stage]) -> Model:
    model = start.copy()
    for use, options in stages:
        zoo_compress.apply(model, use, options, context(start))
    return model


def named(value: Any) -> str:
    return (" > ".join(use for use, _ in value) or "unchanged") if isinstance(value, list) else str(value)[:12]


@pytest.mark.parametrize(("name", "stages"), [(n, stages) for names, stages in PLAIN for n in names], ids=named)
def test_plain_transformers_loads_it_with_the_same_logits(
    name: str, stages: list[Stage], bases: Any, tmp_path: Path
) -> None:
    model = made(bases(name), stages)
    place = model.save(tmp_path / "model")
    assert read_manifest(place).plain == ""
    assert "Plain transformers loads this folder too." in (place / "README.md").read_text()
    auto = getattr(transformers, AUTO[model.spec.task])
    plain, said = auto.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    assert not any(said.values()), said
    plain.eval()
    zoo.tensors.alignment.align(
        plain
    )  # transformers maps weights where they lie in the file, which can change the last bit
    for size in (16, 1):
        batch = model.family.example(model, size=size)
        with torch.no_grad():
            assert torch.equal(plain(**batch).logits, model.family.forward(model, batch))
    assert sum(p.numel() for p in plain.parameters()) == model.params


@pytest.mark.parametrize(
    ("name", "stages", "reason"), [(n, stages, reason) for names, stages, reason in NOT_PLAIN for n in names], ids=named
)
def test_what_is_not_representable_has_no_config_and_says_why(
    name: str, stages: list[Stage], reason: str, bases: Any, tmp_path: Path
) -> None:
    place = made(bases(name), stages).save(tmp_path / "model")
    assert not (place / "config.json").exists()
    why = read_manifest(place).plain
    assert re.search(reason, why), why
    assert f"Plain transformers cannot load this folder: {why}" in (place / "README.md").read_text()
    with pytest.raises((OSError, ValueError)):
        transformers.AutoConfig.from_pretrained(place, local_files_only=True)


def test_a_target_that_is_all_of_the_model_says_the_same(bases: Any, tmp_path: Path) -> None:
    """Pruning two halves by equal amounts gives blocks of one width, but the config was left alone: not plain."""
    halves = [stage("prune.structured", heads=None, target=f"language.blocks[{part}]") for part in (":2", "2:")]
    place = made(bases("qwen3"), halves).save(tmp_path / "model")
    assert re.search("the plain class has", read_manifest(place).plain)
