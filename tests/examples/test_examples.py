"""Every recipe in examples/ runs, at toy size: less data, fewer steps, all else as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo_compress import Recipe, run

from zoo import artifact

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.toml"))

SMALL = ["data.train=stdlib:train[:3]", "data.test=stdlib:test[:2]", "evaluate.perplexity.max_tokens=200", "evaluate.speed=false"]
# recipe -> what is set to make it a toy; a recipe without a row fails a test
TOY: dict[str, list[str]] = {
    "quickstart": [*SMALL, "data.calibration=stdlib:train[:1]", "stage.2.steps=2", "stage.2.batch=2", "stage.2.length=32"],
    "train/tiny_code": [*SMALL, "stage.1.steps=2", "stage.1.batch=2", "stage.1.length=32"],
}
# recipe -> where the tests of its family are, which run it
ELSEWHERE = {
    "quickstart-t2i": "tests/snapgen", "train/tiny_t2i": "tests/snapgen", "quickstart-vlm": "tests/h2ovl", "train/tiny_vlm": "tests/h2ovl",
}  # fmt: skip


def test_every_recipe_has_a_row():
    assert [name for name in RECIPES if name not in TOY and name not in ELSEWHERE] == [], "give a new recipe its row in TOY"
    assert {*TOY} | {*ELSEWHERE} <= {*RECIPES}


@pytest.mark.parametrize("name", TOY)
def test_a_recipe_runs_as_it_stands_at_toy_size(name: str, tmp_path: Path):
    recipe = Recipe.load(EXAMPLES / f"{name}.toml", overrides=TOY[name])
    done = run(recipe, out=tmp_path / "out")
    assert artifact.verify(done.out) == [] and (done.out / "report.html").stat().st_size > 10_000
    assert [stage["use"] for stage in done.results["stages"]] == ["original", *(stage.use for stage in recipe.stages)]
    assert all(stage["params"] == stage["predicted"]["params"] and stage["bytes"] == stage["predicted"]["bytes"] for stage in done.results["stages"])
    last = done.results["stages"][-1]
    assert last["metrics"]["bits_per_byte"]["value"] > 0 and len(last["samples"]) == len(recipe.evaluate.prompts)
    assert bool(done.results["control"]) == recipe.evaluate.control and done.results["baselines"]
    assert isinstance(done.load().generate("import ", max_new_tokens=4), str)
