"""Every recipe in examples/ runs, at toy size: less data, fewer steps, all else as it stands.

Those of the packages in `third_party/` need them installed: `test_third_party.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import VOCABULARY, tokenizer
from zoo_compress import Recipe, run

from zoo.artifact import store

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = [path.relative_to(EXAMPLES).with_suffix("") for path in EXAMPLES.rglob("*.toml")]
RECIPES = sorted(path.as_posix() for path in FILES if path.parts[0] != "third_party")

SMALL = [
    "data.train=stdlib:train[:3]",
    "data.test=stdlib:test[:2]",
    "evaluate.perplexity.max_tokens=200",
    "evaluate.speed=false",
]
READING = ["data.train=reading:train[:4]", "data.test=reading:test[:4]", "evaluate.speed=false"]
DRAWN = ("prompt-agreement", "frechet")
DRAWING = [
    "data.train=digits-captions:train[:40]",
    "data.test=digits-captions:test[:40]",
    "evaluate.speed=false",
    'evaluate.prompts=["a seven"]',
    *(f"evaluate.{task}.images=20" for task in DRAWN),
]
# recipe -> what is set to make it a toy; a recipe without a row fails a test
TOY: dict[str, list[str]] = {
    "quickstart": [
        *SMALL,
        "data.calibration=stdlib:train[:1]",
        "stage.3.steps=2",
        "stage.3.batch=2",
        "stage.3.length=32",
    ],
    "smollm2": [
        *SMALL[:3],
        "data.calibration=stdlib:train[:1]",
        "evaluate.speed=false",
        "stage.1.layers=auto:2",
        "stage.2.ffn=48",
        "stage.3.steps=2",
        "stage.3.batch=2",
        "stage.3.length=32",
    ],
    "smollm2-int4": [
        "data.test=stdlib:test[:2]",
        "data.calibration=stdlib:train[:1]",
        "evaluate.perplexity.max_tokens=200",
        "evaluate.divergence.max_tokens=200",
        "evaluate.speed=false",
        "stage.1.samples=4",
    ],
    "train/tiny_code": [*SMALL, "stage.2.steps=2", "stage.2.batch=2", "stage.2.length=32"],
    **{
        f"train/{name}": [*SMALL, "stage.2.steps=2", "stage.2.batch=2", "stage.2.length=32"]
        for name in ("zlata", "bebeshka")
    },
    "quickstart-vlm": [*READING, "data.calibration=reading:train[:2]", "stage.4.steps=2", "stage.4.batch=2"],
    "train/tiny_vlm": [
        *READING,
        "data.start=reading:characters[:4]",
        *(f"stage.{i}.{key}=2" for i in (1, 2) for key in ("steps", "batch")),
    ],
    "quickstart-t2i": [*DRAWING, "stage.3.steps=2", "stage.3.batch=2", *(f"evaluate.{task}.steps=2" for task in DRAWN)],
    "train/tiny_t2i": [*DRAWING, *(f"stage.{i}.{key}=2" for i in (1, 2) for key in ("steps", "batch"))],
}


def tiny_gguf(folder: Path) -> Path:
    """In the place of trained weights that a package brings: a file of the same kind."""
    from gguf_writer import write
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=3, max_position_embeddings=64, **shape)
    return write(folder / "tiny.gguf", LlamaForCausalLM(config), "llama", kind="Q8_0", tokenizer=tokenizer())


def test_every_recipe_has_a_row():
    assert {*TOY} == {*RECIPES}, "give a new recipe its row in TOY"


@pytest.mark.parametrize("name", TOY)
def test_a_recipe_runs_as_it_stands_at_toy_size(name: str, tmp_path: Path):
    overrides = [*TOY[name], *([f"model.name={tiny_gguf(tmp_path)}"] if name.startswith("smollm2") else [])]
    recipe = Recipe.load(EXAMPLES / f"{name}.toml", overrides=overrides)
    done = run(recipe, out=tmp_path / "out")
    assert store.verify(done.out) == [] and (done.out / "report.html").stat().st_size > 10_000
    assert [stage["use"] for stage in done.results["stages"]] == ["original", *(stage.use for stage in recipe.stages)]
    assert all(
        stage["params"] == stage["predicted"]["params"] and stage["bytes"] == stage["predicted"]["bytes"]
        for stage in done.results["stages"]
    )
    last = done.results["stages"][-1]
    assert last["metrics"] and last["samples"]
    assert bool(done.results["control"]) == recipe.evaluate.control
    assert len(done.results["baselines"]) == len(recipe.evaluate.baselines)
    assert done.load().params == last["params"]
