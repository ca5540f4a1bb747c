"""What the anatomy does not name is counted, and said in plan, record and card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from stages import apply, check, context, small
from torch import nn
from twins import FFN, WIDTH
from zoo_compress import Recipe, plan

from zoo.anatomy.coverage import ROUTERS, TABLES, left_out, said
from zoo.errors import Refused
from zoo.model.model import Model


class Doubled(nn.Linear):
    """A layer that no other may stand for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def with_adapters() -> Model:
    """A llama with a layer in each block that computes in a way of its own."""
    model = small("llama")
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        layer.mlp.adapter = Doubled(WIDTH, 4, bias=False)
    return model


def test_every_layer_of_a_plain_model_is_named() -> None:
    for name in ("llama", "gpt2", "phi3", "gpt-neox", "bert", "falcon"):
        assert left_out(small(name), "all") == {} and said({}) == ""


def test_routers_are_named_and_left_as_they_are() -> None:
    record = left_out(
        small("mixtral"), "all", kept={TABLES: [f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)]}
    )
    assert [(kept["kind"], kept["layers"]) for kept in record["left_as_is"]] == [(ROUTERS, 2), (TABLES, 2)]
    assert re.fullmatch(
        r"It leaves as they are: routers \(\*\.mlp\.gate: 2 layers, 0 % of the weights\); "
        r"experts in one tensor \(\*\.mlp\.experts\.down_proj: 2 layers, \d+ % of the weights\)\.",
        said(record),
    )
    assert left_out(small("mixtral"), "language.attention") == {}


def test_what_is_left_is_counted_by_kind() -> None:
    """A layer of its own kind is left, the FFN around it is not."""
    found = left_out(with_adapters(), "language")["left_out"]
    share = 4 * WIDTH / (3 * FFN * WIDTH + 4 * WIDTH + 4 * WIDTH * WIDTH)
    weights = pytest.approx(share, abs=1e-4)
    assert found == {"layers": 2, "of": 16, "weights": weights, "names": ["*.mlp.adapter"], "linear": True}
    assert said({"left_out": found}) == (
        f"2 of 16 linear layers ({100 * found['weights']:.0f} % of their weights) are not part of the anatomy and stay as they are: "
        "*.mlp.adapter."
    )
    assert left_out(with_adapters(), "language.attention") == {}
    assert left_out(with_adapters(), "language.blocks[0]")["left_out"]["layers"] == 1
    assert left_out(with_adapters(), "all")["left_out"]["of"] == 17


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("quantize.int8", {}),
        ("quantize.nf4", {"target": "language"}),
        ("lowrank.svd", {"rank": 4, "whiten": False}),
        ("prune.magnitude", {"sparsity": 0.5}),
    ],
)
def test_the_record_and_the_card_say_what_a_stage_leaves(use: str, options: dict[str, object], tmp_path: Path) -> None:
    model = with_adapters()
    apply(model, use, options, context())
    assert model.lineage[-1].record["left_out"]["layers"] == 2
    again = left_out(model, str(options.get("target", "all" if use == "quantize.int8" else "language")))
    assert again["left_out"] == model.lineage[-1].record["left_out"]  # packed, factored or zero, the others count alike


def test_the_plan_and_the_card_of_a_real_architecture_say_it(tmp_path: Path) -> None:
    model = small("mixtral")
    model.save(tmp_path / "model")
    tables = {
        "recipe": {"name": "r"},
        "model": {"name": str(tmp_path / "model")},
        "evaluate": {"tasks": [], "speed": False},
    }
    skip = {"skip": ["*.experts.*"]}
    found = plan(Recipe.parse({**tables, "stage": [{"use": "quantize.int8", **skip}]}))
    sentence = "It leaves as they are: routers (*.mlp.gate: 2 layers, 0 % of the weights); experts in one tensor ("
    assert sentence in found.stages[1].note
    apply(model, "quantize.int8", skip)
    assert sentence in (model.save(tmp_path / "saved") / "README.md").read_text()


def test_where_nothing_is_reached_the_refusal_says_what_there_is() -> None:
    with pytest.raises(Refused, match=r"nothing is left to pack in .language.mixer.; look at target and skip\.$"):
        check(small("llama"), "quantize.int8", target="language.mixer")
    with pytest.raises(Refused, match=r"in .language.ffn.; look at target and skip. It leaves as they are: routers"):
        check(small("mixtral"), "quantize.int8", target="language.ffn", skip=["*.experts.*"])
