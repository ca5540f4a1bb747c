"""Training of masked-lm models: what is hidden, and that it is drawn anew and learnt."""

from __future__ import annotations

import pytest
import torch
from stages import apply, data, options, small

from zoo import registry
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.tensors.batch import generators

pytestmark = pytest.mark.quick


def bert() -> Model:
    """A twin whose token "w3" is the mask."""
    model = small("bert")
    model.processor.add_special_tokens({"mask_token": "w3"})
    return model


def test_some_tokens_of_each_window_are_hidden_and_asked_for() -> None:
    model = bert()
    ids = torch.randint(4, 96, (64, 50), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    drawn = model.family.draw(model, batch, generators(0, range(64)))
    hidden = drawn["labels"] >= 0
    assert torch.equal(drawn["labels"][hidden], ids[hidden])
    assert torch.equal(drawn["input_ids"][~hidden], ids[~hidden])
    assert 0.13 < hidden.float().mean() < 0.17
    shown = drawn["input_ids"][hidden]
    assert 0.74 < (shown == 3).float().mean() < 0.86
    assert 0.05 < (shown == ids[hidden]).float().mean() < 0.16
    again, other = (model.family.draw(model, batch, generators(seed, range(64))) for seed in (0, 1))
    assert torch.equal(again["labels"], drawn["labels"]) and not torch.equal(other["labels"], drawn["labels"])


def test_the_config_says_how_many_and_one_is_the_least() -> None:
    model = bert()
    model.module.config.mlm_probability = 0.0  # type: ignore[union-attr]
    ids = torch.randint(4, 96, (5, 20), generator=torch.Generator().manual_seed(1))
    drawn = model.family.draw(model, {"input_ids": ids}, generators(0, range(5)))
    assert (drawn["labels"] >= 0).sum(1).tolist() == [1] * 5


def test_a_masked_model_learns_what_is_hidden() -> None:
    """Text of one word: after a few steps it is named in place of the mask."""
    model = bert()
    text = data(tokens=400)
    for sample in text:
        sample.fields["text"] = "w7 " * 400
    trained = apply(
        model,
        registry.compressor("train"),
        options("train", steps=30, batch=4, length=16, lr=0.01, warmup=2),
        Context(data={"train": text}),
    )
    ids = torch.tensor([[7, 7, 3, 7, 7]])
    assert int(trained.family.forward(trained, {"input_ids": ids})[0, 2].argmax()) == 7


def test_a_causal_model_is_asked_for_the_next() -> None:
    model = small("llama")
    batch = {"input_ids": torch.ones(1, 3, dtype=torch.long), "labels": torch.ones(1, 3, dtype=torch.long)}
    assert model.family.draw(model, batch, generators(0, range(1))) is batch
