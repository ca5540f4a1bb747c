"""Rehearsals: where shapes do not tell whether a model runs, a run tries all its stages before the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stages import small
from twins import FFN, HEADS, VOCABULARY, WIDTH
from zoo_compress import Recipe, plan, run
from zoo_compress.recipe.rehearsal import rehearse

from zoo.errors import Refused
from zoo.model.context import Silent
from zoo.model.model import Model

LONGFORMER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 3,
    "max_position_embeddings": 66,
    "attention_window": [4, 4, 4],
    "pad_token_id": 1,
}


class Told(Silent):
    """What a run says, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def recipe(model: Path, *stages: dict[str, Any]) -> Recipe:
    tables = {"recipe": {"name": "r"}, "model": {"name": str(model)}, "stage": list(stages)}
    return Recipe.parse({**tables, "evaluate": {"tasks": [], "speed": False}})


def longformer(folder: Path) -> Path:
    """A model whose forward pass asks for values, saved by its library."""
    import transformers

    config = transformers.LongformerConfig(**LONGFORMER)
    transformers.LongformerForMaskedLM(config).save_pretrained(folder)
    return folder


def test_what_shapes_do_not_tell_is_said_and_tried_before_the_first_stage(tmp_path: Path) -> None:
    asked = recipe(longformer(tmp_path / "model"), {"use": "inherit", "layers": [0, 2]}, {"use": "quantize.int8"})
    planned = plan(asked)
    assert [stage.untried for stage in planned.stages] == [False, True, True]
    assert planned.stages[1].note.endswith(
        "Shapes do not tell whether the model runs after it: the run tries that before its first stage."
    )
    told = Told()
    done = run(asked, out=tmp_path / "out", progress=told)
    assert told.lines.index("trying all stages before the first") < told.lines.index("stage 1 (inherit): running")
    assert done.load().params == planned.stages[-1].params


def test_a_later_stage_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    model: Model = small("llama")
    stages = recipe(model.save(tmp_path / "model"), {"use": "inherit", "layers": [1]}, {"use": "quantize.int8"}).stages
    model.module.model.layers[1].mlp.register_forward_pre_hook(lambda module, _: module.up_proj.weight.sum() and None)  # type: ignore[union-attr, index]
    with pytest.raises(Refused, match=r"stage 2 \(quantize.int8\): quantize.int8 does not fit .*no attribute 'weight'"):
        rehearse(model, stages, seed=0)
