"""The cases of the contract tests: models to start from, options for every compressor, chains of stages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from stages import tokenizer
from twins import VOCABULARY, twin

import zoo
from zoo import weights
from zoo.compressor import Context
from zoo.data import Dataset, Sample
from zoo.model import Model

# name -> (twin, its changes). Four layers, so that there is something to keep, share and select.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"num_hidden_layers": 4}),
    "llama-tied": ("llama-tied", {"num_hidden_layers": 4}),
    "gpt-neox": ("gpt-neox", {"num_hidden_layers": 4}),
    "opt": ("opt", {"num_hidden_layers": 4}),
    "bert": ("bert", {"num_hidden_layers": 4}),
    "mixtral": ("mixtral", {"num_hidden_layers": 4}),
    "phi3": ("phi3", {"num_hidden_layers": 4}),
    "gpt2": ("gpt2", {"n_layer": 4}),
}
TINY = "tiny-code"


def base(name: str, folder: Path) -> Model:
    """The catalogue's tiny model, or a twin as anybody's checkpoint directory: saved by transformers, loaded by zoo."""
    if name == TINY:
        packaged = weights.packaged_at(zoo.info(name))
        return zoo.load(name, weights="auto" if packaged else "random")
    return zoo.load(checkpoint(name, folder))


def checkpoint(name: str, folder: Path) -> Path:
    """A twin saved by transformers, with a tokenizer of whole words beside it."""
    place = folder / name
    if not place.exists():
        kind, changes = BASES[name]
        twin(kind, **changes).save_pretrained(place)  # type: ignore[operator]
        tokenizer().save_pretrained(place)
    return place


def words(*, count: int = 1500, seed: int = 0) -> str:
    """Random words, which the twins' tokenizer knows and any other splits."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(count))


def context(original: Model) -> Context:
    """What stages may use: a little text, and the model they began with as the teacher."""
    data = Dataset("words", [Sample({"text": words(seed=seed)}, f"words:{seed}") for seed in range(2)])
    return Context(data={"train": data, "calibration": data}, load=lambda _: original.copy())
