"""What the anatomy does not name is counted, and said in plan, record and card."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages import apply, check, context, small
from torch import nn
from twins import FFN, WIDTH
from zoo_compress import Recipe, plan

from zoo.anatomy.coverage import left_out, said
from zoo.errors import Refused
from zoo.model.model import Model


def with_adapters() -> Model:
    """A llama with a linear layer in each block that no one knows of."""
    model = small("llama")
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        layer.mlp.adapter = nn.Linear(WIDTH, 4, bias=False)
    return model


def test_every_layer_of_a_plain_model_is_named() -> None:
    for name in ("llama", "gpt2", "phi3", "mixtral", "gpt-neox", "bert", "falcon"):
        assert left_out(small(name), "all") == {} and said({}) == ""


def test_what_is_left_is_counted_by_kind() -> None:
    """An FFN with one layer more is not understood, so all of it is left."""
    found = left_out(with_adapters(), "language")["left_out"]
    one = 3 * FFN * WIDTH + 4 * WIDTH
    assert found == {
        "layers": 8,
        "of": 16,
        "weights": pytest.approx(one / (one + 4 * WIDTH * WIDTH), abs=1e-4),
        "names": ["*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj", "*.mlp.adapter"],
        "linear": True,
    }
    assert said({"left_out": found}) == (
        f"8 of 16 linear layers ({100 * found['weights']:.0f} % of their weights) are not part of the anatomy and stay as they are: "
        "*.mlp.gate_proj, *.mlp.up_proj, *.mlp.down_proj, *.mlp.adapter."
    )
    assert left_out(with_adapters(), "language.attention") == {}
    assert left_out(with_adapters(), "language.blocks[0]")["left_out"]["layers"] == 4
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
    assert model.lineage[-1].record["left_out"]["layers"] == 8
    again = left_out(model, str(options.get("target", "all" if use == "quantize.int8" else "language")))
    assert again["left_out"] == model.lineage[-1].record["left_out"]  # packed, factored or zero, the others count alike


def test_the_plan_and_the_card_of_a_real_architecture_say_it(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 96, "n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    config = transformers.CodeGenConfig(**sizes, bos_token_id=1, eos_token_id=2)
    transformers.CodeGenForCausalLM(config).save_pretrained(tmp_path / "model")
    tables = {
        "recipe": {"name": "r"},
        "model": {"name": str(tmp_path / "model")},
        "evaluate": {"tasks": [], "speed": False},
    }
    found = plan(Recipe.parse({**tables, "stage": [{"use": "quantize.int8"}]}))
    sentence = "4 of 9 linear layers (30 % of their weights) are not part of the anatomy and stay as they are: *.attn.out_proj, *.attn.qkv_proj."
    assert sentence in found.stages[1].note
    import zoo

    model = zoo.load(tmp_path / "model")
    apply(model, "quantize.int8")
    assert sentence in (model.save(tmp_path / "saved") / "README.md").read_text()


def test_where_nothing_is_reached_the_refusal_says_what_there_is() -> None:
    model = with_adapters()
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        layer.self_attn.other = nn.Linear(WIDTH, 4, bias=False)
    with pytest.raises(
        Refused, match=r"nothing is left to pack in .all.; look at target and skip. 18 of 19 linear layers"
    ):
        check(model, "quantize.int8", embedding=False)
