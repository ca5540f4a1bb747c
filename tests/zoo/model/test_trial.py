"""Trials: a model that no longer runs after a stage, or goes on wrongly from its cache, is never left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stages import apply, small
from torch import nn

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


class RoundsSingleTokens(nn.Linear):
    """What reads one token at a time and rounds otherwise, as kernels do in half precision."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BTD) * (1.01 if x_BTD.shape[1] == 1 else 1)


class Rounds(Stage):
    name = "rounds"

    def rebuild(self, model: Model, record: Any) -> None:
        mlp: Any = model.module.model.layers[1].mlp  # type: ignore[union-attr, index]
        mlp.up_proj.__class__ = RoundsSingleTokens


def in_half(name: str) -> Model:
    model = small(name)
    model.module.to(torch.bfloat16)
    model.dtype = model.stored = "bfloat16"
    return model


@pytest.mark.parametrize("made", [small, in_half])
def test_a_cache_that_mixes_blocks_up_is_refused(made: Callable[[str], Model]) -> None:
    sentence = r"^drops does not fit LlamaForCausalLM: token by token the model it leaves computes something else than at once\. Choose"
    with pytest.raises(Refused, match=sentence):
        apply(made("llama"), DropsWithoutRenumbering())


def test_rounding_to_half_precision_is_no_other_result() -> None:
    model, widened = in_half("llama"), small("llama")
    assert runs(model) == runs(widened) == "alike"
    for changed in (model, widened):
        Rounds().rebuild(changed, {})
    require_running(model, Rounds(), before="alike")
    with pytest.raises(Refused, match="computes something else"):
        require_running(widened, Rounds(), before="alike")


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
