"""What a result inherits: the licences of its base, its teachers and its data, in the plan and on the card."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import RECIPE, checkpoint, workplace
from zoo_compress import Recipe, apply, plan

import zoo
from zoo import cli
from zoo.data.open import open_data
from zoo.model.context import Context
from zoo.model.licences import Inherited, inherited, of_data, overall, stated_in

SMALL = {"steps": 1, "batch": 1, "length": 16}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    workplace(tmp_path)
    checkpoint(tmp_path / "teacher")
    (tmp_path / "model/README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    return tmp_path


def declare(folder: Path, license: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")


@pytest.mark.parametrize(
    ("license", "judged"),
    [
        ("Apache-2.0", ""),
        ("CC-BY-4.0, OFL-1.1, Apache-2.0", ""),
        ("unknown", "what it permits, and so what the result may be used for, is not known here"),
        ("cc-by-nc-4.0", "not for commercial use, and neither is the result"),
        ("LicenseRef-Tongyi-Qianwen-Research", "not for commercial use, and neither is the result"),
        ("Apache-2.0, cc-by-nc-sa-4.0", "not for commercial use, and neither is the result"),
        ("LicenseRef-Gemma", "it has terms of its own, which hold for the result too"),
        ("Apache 2.0 and MIT", ""),
        ("Acme Non Commercial Terms", "not for commercial use, and neither is the result"),
        ("nccl", "it has terms of its own, which hold for the result too"),
    ],
)
def test_a_licence_is_judged(license: str, judged: str):
    assert Inherited("base x", license).judged == judged


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags:\n- a\nlicense:\n- cc-by-nc-4.0\n- mit\nlanguage:\n- en\n---\n", "cc-by-nc-4.0, mit"),
        ("---\nlicense: [mit, 'apache-2.0']  # both\n---\n", "mit, apache-2.0"),
        ('---\nlicense: other\nlicense_name: "Llama 3 Community"\n---\n', "Llama 3 Community"),
        ("---\nlicense: \x1b[31m\n---\n", ""),
        ("license: mit\n", ""),
        ("# A model\n\nlicense: mit\n---\n", ""),
    ],
)
def test_the_card_of_a_checkpoint_says_its_licence(text: str, license: str, tmp_path: Path):
    assert stated_in(tmp_path / "README.md") == ""
    (tmp_path / "README.md").write_text(text)
    assert stated_in(tmp_path / "README.md") == license


def test_data_has_the_licence_that_its_plugin_declares():
    assert of_data(["stdlib:train[:8]", "stdlib:test", "texts[:2]"]) == {
        "data stdlib": "PSF-2.0",
        "data texts": "unknown",
    }


def test_the_plan_says_what_the_result_inherits(place: Path, capsys: pytest.CaptureFixture[str]):
    recipe = place / "recipe.toml"
    recipe.write_text(RECIPE.replace('use = "distill"', 'use = "distill"\nteacher = "./teacher"'))
    assert [(one.of, one.license) for one in plan(Recipe.load(recipe)).inherits] == [
        ("base model", "apache-2.0"),
        ("data texts", "unknown"),
        ("teacher ./teacher", "unknown"),
    ]
    declare(place / "teacher", "cc-by-nc-4.0")
    assert cli.main(["plan", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "  the result inherits the licences of base model (apache-2.0)\n" in said
    assert (
        "  the result inherits the licence of teacher ./teacher (cc-by-nc-4.0): "
        "not for commercial use, and neither is the result\n" in said
    )


def test_the_card_says_what_the_result_inherits_also_through_a_teacher(place: Path):
    declare(place / "teacher", "cc-by-nc-4.0")
    context = Context(data={"train": open_data(str(place / "texts"))}, load=lambda name: zoo.load(place / name))
    first = apply(zoo.load(place / "model"), "distill", {**SMALL, "teacher": "teacher"}, context)
    card = (first.save(place / "first") / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "- base model (apache-2.0)\n" in card and "- teacher teacher (cc-by-nc-4.0): not for commercial use" in card
    assert f"- data {place / 'texts'} (unknown)" in card
    second = apply(zoo.load(place / "model"), "distill", {**SMALL, "teacher": "first"}, context)
    assert [one.license for one in inherited(second)] == ["apache-2.0", "unknown", "apache-2.0", "cc-by-nc-4.0"]
    again = zoo.load(second.save(place / "second"))
    assert inherited(again) == inherited(second) and overall(inherited(again)) == "other"


@pytest.mark.parametrize(
    ("licenses", "whole"),
    [
        ({"base a": "Apache-2.0"}, "apache-2.0"),
        ({"base a": "Apache-2.0", "data texts": "unknown"}, "apache-2.0"),
        ({"base a": "Apache-2.0", "teacher b": "MIT"}, "apache-2.0"),
        ({"base a": "Apache-2.0", "teacher b": "unknown"}, "unknown"),
        ({"base a": "unknown"}, "unknown"),
        ({"base a": "Apache-2.0", "teacher b": "cc-by-nc-4.0"}, "other"),
        ({"base a": "LicenseRef-Gemma", "teacher b": "LicenseRef-Gemma"}, "licenseref-gemma"),
    ],
)
def test_the_head_of_a_card_names_one_licence_where_it_holds_for_all(licenses: dict[str, str], whole: str):
    assert overall([Inherited(of, license) for of, license in licenses.items()]) == whole
