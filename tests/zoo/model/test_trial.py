"""Trials: a model that no longer runs after a stage, or goes on wrongly from its cache, is never left behind."""

from __future__ import annotations

from typing import Any

import pytest
from stages import apply, small

from zoo.compressor import Compressor
from zoo.errors import Refused
from zoo.model.model import Model
from zoo.model.trial import require_running, runs
from zoo.options import CompressorOptions


class Stage(Compressor):
    """A stage of somebody else's, which declares nothing."""

    Options = CompressorOptions

    def outline(self, model: Model, options: Any) -> dict[str, Any]:
        return {}

    def apply(self, model: Model, options: Any, context: Any) -> dict[str, Any]:
        self.rebuild(model, {})
        return {}


class DropsWithoutRenumbering(Stage):
    """Both blocks that are left keep what they read in the same place."""

    name = "drops"

    def rebuild(self, model: Model, record: Any) -> None:
        model.module.model.layers[1].self_attn.layer_idx = 0  # type: ignore[union-attr, index]


class Narrows(Stage):
    name = "narrows"

    def rebuild(self, model: Model, record: Any) -> None:
        layer: Any = model.module.model.layers[1]  # type: ignore[union-attr, index]
        del layer.mlp.up_proj

    def remedy(self, path: str) -> str:
        return f"Leave out {path}."


def test_a_cache_that_mixes_blocks_up_is_refused() -> None:
    sentence = r"^drops does not fit LlamaForCausalLM: token by token the model it leaves computes something else than at once\. Choose"
    with pytest.raises(Refused, match=sentence):
        apply(small("llama"), DropsWithoutRenumbering())


def test_what_a_forward_pass_misses_is_named_with_the_remedy_of_the_stage() -> None:
    with pytest.raises(
        Refused, match=r"^narrows does not fit .*\(model\.layers\.1\.mlp: .*up_proj.*\)\. Leave out model"
    ):
        apply(small("llama"), Narrows())


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral", "falcon", "bert"])
def test_sound_models_run_alike_at_once_and_in_steps(name: str) -> None:
    assert runs(small(name)) == "alike"


def test_a_model_that_did_not_run_before_is_not_blamed_on_the_stage() -> None:
    model = small("llama")
    del model.module.model.layers[0].mlp.up_proj  # type: ignore[union-attr, index]
    assert runs(model) == "not"
    require_running(model, DropsWithoutRenumbering(), before="not")
