"""Recipes: what is wrong in one is said in one sentence with the file, the line, the stage and the nearest right thing."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo_compress import Recipe
from zoo_compress.recipe.recipe import Recipe as SameRecipe

from zoo.errors import RecipeError, RequestError, UnknownName, ZooError

pytestmark = pytest.mark.quick

GOOD = """\
[recipe]
name = "small"
seed = 3

[model]
name = "tiny-code"

[data]
train = "stdlib:train"
test = "stdlib:test[:2]"

[[stage]]
use = "inherit"
layers = "first:3"

[[stage]]
use = "distill"
loss = [
  { use = "kl", temperature = 2.0 },
  { use = "cross-entropy", weight = 0.5 },
]
steps = 10

[evaluate]
tasks = ["perplexity"]
speed = false

[evaluate.perplexity]
max_tokens = 100
"""

INHERIT = "Options: data, samples, length, batch, chat, layers, target, keep_ends."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(GOOD)
    return tmp_path / "small.toml"


def refusal(file: Path, text: str, kind: type[ZooError] = RecipeError, overrides: tuple[str, ...] = ()) -> str:
    """The sentence a recipe is refused with; the folder left out."""
    file.write_text(text)
    with pytest.raises(kind) as caught:
        Recipe.load(file, overrides=overrides)
    assert type(caught.value) is kind
    return str(caught.value).replace(f"{file.parent}/", "")


def test_a_good_recipe_is_read(file: Path):
    recipe = Recipe.load(file)
    assert (recipe.about.name, recipe.about.seed, recipe.model.name) == ("small", 3, "tiny-code")
    assert [stage.use for stage in recipe.stages] == ["inherit", "distill"]
    assert recipe.stages[0].label == "stage 1 (inherit)" and recipe.stages[0].where.endswith(
        "small.toml, line 12, stage 1 (inherit)"
    )
    assert recipe.evaluate.options("perplexity") == {"max_tokens": 100} and recipe.evaluate.options("speed") == {}
    assert recipe.base == file.parent and SameRecipe is Recipe


def test_a_dict_is_as_good_as_a_file(file: Path):
    parsed = Recipe.parse(tomllib.loads(GOOD))
    assert parsed.base == Path() and [s.options for s in parsed.stages] == [s.options for s in Recipe.load(file).stages]


@pytest.mark.parametrize(
    "example",
    sorted(
        path for path in (Path(__file__).parents[3] / "examples").rglob("*.toml") if "third_party" not in path.parts
    ),
    ids=lambda path: path.stem,
)
def test_every_example_is_a_good_recipe(example: Path):
    if "pyproject" in example.name or "registry" in example.name:
        pytest.skip("not a recipe")
    assert Recipe.load(example).stages
    assert example.read_text().startswith(
        f"# zoo compress {example.relative_to(example.parents[1] if example.parent.name == 'examples' else example.parents[2])}"
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "[evaluate]",
            "[evalute]",
            "small.toml, line 24: there is no table 'evalute'. Did you mean 'evaluate'? Tables: recipe, model, data, stage, evaluate.",
        ),
        (
            "[model]\nname",
            "[mdel]\nname",
            "small.toml, line 5: there is no table 'mdel'. Did you mean 'model'? Tables: recipe, model, data, stage, evaluate.",
        ),
        ('[model]\nname = "tiny-code"\n', "", "small.toml: the table [model] is missing."),
        ('[recipe]\nname = "small"\nseed = 3\n', "", "small.toml: the table [recipe] is missing."),
        (
            "layers =",
            "layer =",
            f"small.toml, line 14, stage 1 (inherit): 'layer' is not an option. Did you mean 'layers'? {INHERIT}",
        ),
        (
            "steps = 10",
            'steps = "ten"',
            "small.toml, line 22, stage 2 (distill): steps = 'ten': input should be a whole number.",
        ),
        (
            "steps = 10",
            "steps = 0",
            "small.toml, line 22, stage 2 (distill): steps = 0: input should be greater than or equal to 1.",
        ),
        (
            "steps = 10",
            "lr = nan",
            "small.toml, line 22, stage 2 (distill): lr = nan: input should be a finite number.",
        ),
        (
            "steps = 10",
            "lr = inf",
            "small.toml, line 22, stage 2 (distill): lr = inf: input should be a finite number.",
        ),
        (
            "steps = 10",
            'decay_shape = "lineer"',
            "small.toml, line 22, stage 2 (distill): decay_shape = 'lineer': input should be 'linear', 'cosine', '1-sqrt' or 'exponential'."
            " Did you mean 'linear'?",
        ),
        (
            'use = "inherit"\n',
            "",
            'small.toml, line 12, stage 1: `use` is missing; it names a compressor, such as "inherit".',
        ),
        ('layers = "first:3"\n', "", "small.toml, line 12, stage 1 (inherit): 'layers' is missing (blocks to keep: "),
        (
            "seed = 3",
            "seed = -1",
            "small.toml, line 3, [recipe]: seed = -1: input should be greater than or equal to 0.",
        ),
        (
            "seed = 3",
            "sead = 3",
            "small.toml, line 3, [recipe]: 'sead' is not an option. Did you mean 'seed'? Options: name, seed, summary.",
        ),
        ('name = "small"', 'name = ".."', "small.toml, line 2, [recipe]: name = '..': string should match pattern"),
        ('name = "small"', 'name = "a/b"', "small.toml, line 2, [recipe]: name = 'a/b': string should match pattern"),
        (
            'name = "tiny-code"',
            'name = "tiny-code"\nstored = "bf16"',
            "small.toml, line 7, [model]: stored = 'bf16': input should be '', 'float32', 'bfloat16' or 'float16'. Did you mean 'bfloat16'?",
        ),
        (
            'test = "stdlib:test[:2]"',
            "test = 3",
            'small.toml, line 10: test must be text such as "stdlib:train", not int.',
        ),
        (
            "max_tokens",
            "max_tokns",
            "small.toml, line 29, [evaluate.perplexity]: 'max_tokns' is not an option. Did you mean 'max_tokens'? Options: max_tokens, length.",
        ),
        (
            "max_tokens = 100",
            "length = 1",
            "small.toml, line 29, [evaluate.perplexity]: length = 1: input should be greater than or equal to 2.",
        ),
        (
            "speed = false",
            "sped = false",
            "small.toml, line 26, [evaluate]: 'sped' is not an option. Did you mean 'speed'? "
            "Options: tasks, baselines, prompts, control, speed, perplexity.",
        ),
        (
            "speed = false\n\n[evaluate.perplexity]\nmax_tokens",
            "\n[evaluate.speed]\nprefil",
            "small.toml, line 28, [evaluate.speed]: 'prefil' is not an option. Did you mean 'prefill'? Options: prefill, decode, repeats.",
        ),
        (
            "[evaluate.perplexity]\nmax_tokens = 100\n",
            "perplexity = { max_tokns = 1 }\n",
            "small.toml, line 28, [evaluate.perplexity]: 'max_tokns' is not an option. Did you mean 'max_tokens'? Options: max_tokens, length.",
        ),
        ('[[stage]]\nuse = "inherit"', '[stage]\nuse = "inherit"', "small.toml is not valid TOML: "),
        ("seed = 3", "seed = ", "small.toml is not valid TOML: Invalid value (at line 3, column 8)."),
        ("seed = 3", "seed = " + "[" * 5000, "small.toml is nested too deeply to be read."),
        ("seed = 3", "seed = " + "9" * 5000, "small.toml is not valid TOML: "),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(file: Path, old: str, new: str, sentence: str):
    assert GOOD.count(old) == 1
    found = refusal(file, GOOD.replace(old, new))
    assert found.startswith(sentence) and (not sentence.endswith((".", "?")) or found == sentence)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'use = "inherit"',
            'use = "inherti"',
            "small.toml, line 13, stage 1: No compressor named 'inherti'. Did you mean 'inherit'? Compressors: inherit, ",
        ),
        (
            'tasks = ["perplexity"]',
            'tasks = ["perplexty"]',
            "small.toml, line 25, [evaluate]: no evaluator named 'perplexty'. Did you mean 'perplexity'? Evaluators: speed, ",
        ),
        (
            'tasks = ["perplexity"]',
            'tasks = ["perplexity"]\nbaselines = ["xzz"]',
            "small.toml, line 26, [evaluate]: no evaluator named 'xzz'. Did you mean 'xz'? Evaluators: ",
        ),
    ],
)
def test_unknown_names_are_named_with_the_nearest(file: Path, old: str, new: str, sentence: str):
    assert refusal(file, GOOD.replace(old, new), UnknownName).startswith(sentence)


def test_an_evaluator_that_measures_a_model_is_no_baseline(file: Path):
    found = refusal(
        file, GOOD.replace('tasks = ["perplexity"]', 'tasks = ["perplexity"]\nbaselines = ["xz", "perplexity"]')
    )
    assert (
        found
        == "small.toml, line 26, [evaluate]: 'perplexity' measures a model, so it is no baseline; put it into tasks."
    )
    assert Recipe.parse(
        tomllib.loads(GOOD.replace("speed = false", 'speed = false\nbaselines = ["xz"]'))
    ).evaluate.baselines == ("xz",)


def test_every_stage_must_be_a_table_of_its_own(file: Path):
    text = GOOD.partition("[[stage]]")[0] + '[stage]\nuse = "inherit"\nlayers = "first:1"\n'
    assert refusal(file, text) == "small.toml, line 12: write every stage as its own [[stage]] table."


def test_lines_are_found_behind_arrays_over_several_lines(file: Path):
    text = GOOD.replace('layers = "first:3"', "layers = [\n  0,\n  1,\n]\nsampels = 2")
    assert refusal(file, text).startswith(
        "small.toml, line 18, stage 1 (inherit): 'sampels' is not an option. Did you mean 'samples'?"
    )


def test_a_byte_order_mark_is_read_over(file: Path):
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert Recipe.load(file).about.name == "small"


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("recipe.yaml", "# mine\nrecipe:\n  name: small\n", "YAML"),
        ("recipe.yml", "x", "YAML"),
        ("recipe.json", '{"recipe": {}}', "JSON"),
        ("recipe.toml", ' {\n"recipe": {}}', "JSON"),
        ("recipe.toml", "# mine\n\n---\nrecipe:\n", "YAML"),
        ("recipe.toml", "recipe:\n  name: small\n", "YAML"),
    ],
)
def test_another_format_is_named(tmp_path: Path, name: str, text: str, kind: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} is {kind}, and a recipe is TOML: [model] with name = ")


def test_a_missing_file_names_the_nearest(file: Path):
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file.parent / "smal.toml")
    assert str(caught.value) == f"{file.parent}/smal.toml does not exist. Did you mean 'small.toml'?"
    with pytest.raises(RecipeError, match=r"no/such\.toml does not exist\.$"):
        Recipe.load(file.parent / "no" / "such.toml")
    with pytest.raises(RecipeError, match=r" is not a file\.$"):
        Recipe.load(file.parent)
    with pytest.raises(RecipeError, match=r"x\.toml does not exist\.$"):
        Recipe.load(file / "x.toml")


def test_a_file_that_is_not_text_is_named_with_the_byte(file: Path):
    file.write_bytes(b'[recipe]\nname = "\xff"\n')
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert str(caught.value) == f"{file} cannot be read: byte 17 is not UTF-8 text."


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("stage.1.layers=first:2", "first:2"),
        ("stage.1.layers=[0, 5]", [0, 5]),
        ('stage.1.layers="last:2"', "last:2"),
        ("stage.1.layers = every:2", "every:2"),
    ],
)
def test_an_override_is_read_as_toml_else_as_text(file: Path, override: str, value: Any):
    assert Recipe.load(file, overrides=[override]).stages[0].options.layers == value  # type: ignore[attr-defined]


def test_overrides_reach_every_table(file: Path):
    recipe = Recipe.load(
        file,
        overrides=[
            "recipe.seed=7",
            "model.weights=random",
            "data.calibration=stdlib:train[:1]",
            "stage.2.lr=2e-3",
            "evaluate.control=true",
            "evaluate.perplexity.max_tokens=5",
            'recipe.summary=a "word" = b',
            "stage.2.loss=[{use='kl'}]",
        ],
    )
    assert (recipe.about.seed, recipe.model.weights, recipe.data["calibration"]) == (7, "random", "stdlib:train[:1]")
    assert recipe.stages[1].options.lr == 2e-3 and recipe.evaluate.control  # type: ignore[attr-defined]
    assert recipe.evaluate.options("perplexity") == {"max_tokens": 5} and recipe.about.summary == 'a "word" = b'
    assert recipe.stages[1].options.loss == ({"use": "kl"},)  # type: ignore[attr-defined]


def test_the_recipe_as_run_tells_its_overrides(file: Path):
    recipe = Recipe.load(file, overrides=["recipe.seed=7"])
    assert recipe.as_run() == f"# run with --set recipe.seed=7\n{GOOD}"
    assert Recipe.load(file).as_run() == GOOD


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stage.1.layers", "override 'stage.1.layers': write KEY=VALUE, such as stage.1.layers=first:3."),
        (
            "stage.6.layers=1",
            "override 'stage.6.layers=1': there is no 'stage.6.layers'; stages are numbered from 1 to 2.",
        ),
        (
            "stage.one.layers=1",
            "override 'stage.one.layers=1': there is no 'stage.one.layers'; stages are numbered from 1 to 2.",
        ),
        ("=3", "override '=3': write KEY=VALUE, such as stage.1.layers=first:3."),
        ("stage..layers=3", "override 'stage..layers=3': write KEY=VALUE, such as stage.1.layers=first:3."),
        ("stage.1=1", "override 'stage.1=1': name the option too, such as stage.1.layers=first:3."),
        ("recipe.name.x=1", "override 'recipe.name.x=1': 'name' is a value, not a table."),
    ],
)
def test_an_override_without_a_place_is_refused(file: Path, override: str, sentence: str):
    assert refusal(file, GOOD, RequestError, (override,)) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "stage.1.layer=first:1",
            "small.toml, override stage.1.layer, stage 1 (inherit): 'layer' is not an option. Did you mean 'layers'?",
        ),
        (
            "stage.2.steps=0",
            "small.toml, override stage.2.steps, stage 2 (distill): steps = 0: input should be greater than or equal to 1.",
        ),
        ("recipe.seed=x", "small.toml, override recipe.seed, [recipe]: seed = 'x': input should be a whole number"),
        (
            "evaluate.perplexity.length=1",
            "small.toml, override evaluate.perplexity.length, [evaluate.perplexity]: length = 1: input should",
        ),
        ("modl.name=x", "small.toml: there is no table 'modl'. Did you mean 'model'?"),
    ],
)
def test_a_wrong_override_is_blamed_on_the_override(file: Path, override: str, sentence: str):
    assert refusal(file, GOOD, overrides=(override,)).startswith(sentence)


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (
            'use = "prune.structured"\nffn = 0',
            "ffn = 0: input should be greater than 0, or greater than or equal to 1.",
        ),
        ('use = "inherit"\nlayers = 3', "layers = 3: input should be text, or a list."),
        (
            'use = "share.ffn"\nstart = "meen"',
            "start = 'meen': input should be 'mean' or 'first', or a whole number. Did you mean 'mean'?",
        ),
        (
            'use = "prune.structured"',
            "say what to remove: ffn, heads, kv_groups or width (ratio for convolutional models).",
        ),
        ('use = "quantize.int8"\nskip = "x"', "skip = 'x': input should be a list."),
        ('use = "quantize.int8"\nembedding = "maybe"', "embedding = 'maybe': input should be true or false."),
        (
            'use = "quantize.int4"\noverrides = [{ pattrn = "*.down" }]',
            "overrides: 'pattrn' is not an option. Did you mean 'pattern'? Options: pattern, bits, group, symmetric, method, activations.",
        ),
        ('use = "quantize.int4"\noverrides = [{ bits = 8 }]', "overrides: 'pattern' is missing."),
    ],
)
def test_a_value_that_does_not_fit_is_said_in_plain_words(file: Path, stage: str, sentence: str):
    found = refusal(file, GOOD.partition("[[stage]]")[0] + f"[[stage]]\n{stage}\n")
    assert found.partition("): ")[2] == sentence


def test_an_override_of_everything_is_where_its_errors_are(file: Path):
    found = refusal(file, GOOD, overrides=('stage=[{use="inherit", layer="first:1"}]',))
    assert found.startswith("small.toml, override stage, stage 1 (inherit): 'layer' is not an option.")


# --- anything at all --------------------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from(["inherit", "distill", "perplexity", "xz", "kl", "random", "float16", "first:1", "stdlib:train"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a recipe."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in inner for found in [(*path, key), *places(value, (*path, key))]]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_mutated_recipe_is_read_or_refused_in_a_sentence(draw: st.DataObject):
    data = copy.deepcopy(tomllib.loads(GOOD))
    for _ in range(draw.draw(st.integers(1, 3))):
        where = draw.draw(st.sampled_from(places(data)))
        parent = data
        for step in where[:-1]:
            parent = parent[step]
        change = draw.draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            del parent[where[-1]]
        elif change == "add" and isinstance(parent[where[-1]], dict):
            parent[where[-1]][draw.draw(st.text(max_size=6))] = draw.draw(VALUES)
        else:
            parent[where[-1]] = draw.draw(VALUES)
        if not data:
            break
    try:
        Recipe.parse(data)
    except ZooError as error:
        assert str(error) and type(error).__name__ != "ZooError" and error.exit_code == 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.sampled_from(["", "stage.1.", "recipe.", "evaluate.", "stage."]))
def test_any_override_is_taken_or_refused_in_a_sentence(file: Path, text: str, start: str):
    try:
        Recipe.load(file, overrides=[start + text])
    except ZooError as error:
        assert str(error) and error.exit_code == 2


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_any_bytes_in_a_recipe_are_read_or_refused_in_a_sentence(file: Path, noise: bytes, at: int):
    file.write_bytes(GOOD.encode()[:at] + noise + GOOD.encode()[at:])
    try:
        Recipe.load(file)
    except ZooError as error:
        assert str(error) and error.exit_code == 2
    finally:
        file.write_text(GOOD)


def test_an_override_of_a_path_starts_where_the_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is there beside the command wins over what is beside the recipe; what is not a path stays as it is."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "recipes")
    (tmp_path / "here" / "texts").mkdir(parents=True)
    (tmp_path / "recipes" / "texts").mkdir()
    (tmp_path / "here" / "model").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("recipes", "linked"):
        file = Path("..") / folder / "small.toml"
        file.write_text(GOOD)
        overrides = ["data.train=texts[:4]", "data.more=stdlib:train", "data.other=absent.txt", "model.name=./model"]
        overrides += ["stage.2.teacher=./model", "model.weights=random"]
        recipe = Recipe.load(file, overrides=overrides)
        assert recipe.data["train"] == "../here/texts[:4]" and (file.parent / "../here/texts").is_dir()
        assert recipe.data["more"] == "stdlib:train" and recipe.data["other"] == "absent.txt"
        assert (recipe.model.name, recipe.model.weights) == ("../here/model", "random")
        assert recipe.stages[1].options.teacher == "../here/model"  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path / "recipes")
    assert Recipe.load("small.toml", overrides=["data.train=texts[:4]"]).data["train"] == "texts[:4]"


def test_overrides_count_stages_as_plans_and_messages_do(file: Path):
    recipe = Recipe.load(file, overrides=["stage.1.layers=first:2"])
    assert recipe.stages[0].options.layers == "first:2"  # type: ignore[attr-defined]
    assert recipe.stages[0].label == "stage 1 (inherit)"
    found = refusal(file, GOOD, RequestError, ("stage.0.layers=first:2",))
    assert found == "override 'stage.0.layers=first:2': there is no 'stage.0.layers'; stages are numbered from 1 to 2."
