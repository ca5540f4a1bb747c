"""Plans: exact from shapes alone, no weight read, and every stage that cannot follow refused with the reason."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import RECIPE, checkpoint, texts, workplace
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from zoo_compress import Recipe, apply, plan, run
from zoo_compress.recipe.fingerprints import names_of

import zoo
from zoo import cli
from zoo.data.open import open_data
from zoo.errors import ArtifactError, DataError, RecipeError, Refused, RequestError, UnknownName, ZooError
from zoo.model.context import Context

HEAD = RECIPE.partition("[[stage]]")[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    workplace(folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


def planned(place: Path, text: str, **kwargs: Any) -> Any:
    (place / "recipe.toml").write_text(text)
    return plan(Recipe.load(place / "recipe.toml", **kwargs))


def refusal(place: Path, text: str, kind: type[ZooError]) -> str:
    """The sentence a plan is refused with; the folder left out."""
    with pytest.raises(kind) as caught:
        planned(place, text)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value).replace(f"{place}/", "")


def stage(use: str, **options: Any) -> str:
    return f"\n[[stage]]\nuse = {json.dumps(use)}\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in options.items()
    )


# --- what a plan says -------------------------------------------------------------------------------------------------


def test_plan_json_has_the_promised_shape(place: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", str(place / "recipe.toml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["use"] for s in found["stages"]] == [
        "original",
        "inherit",
        "prune.structured",
        "distill",
        "quantize.int8",
    ]
    for one in found["stages"]:
        assert {"use", "params", "bytes", "peak_bytes"} <= set(one)
        assert one["params"] > 0 and 0 < one["bytes"] < one["peak_bytes"]
    assert found["stages"][1]["options"]["layers"] == "first:1"
    assert {role: data["records"] for role, data in found["data"].items()} == {"train": 4, "calibration": 2, "test": 2}
    assert found["disk_bytes"] > 0 and found["free_disk_bytes"] > 0 and found["free_memory_bytes"] > 0


def test_plan_reads_no_weight(place: Path):
    """What lies behind the header of the safetensors file is cut off."""
    whole = plan(Recipe.load(place / "recipe.toml"))
    file = place / "model/model.safetensors"
    with file.open("rb") as start:
        length = int.from_bytes(start.read(8), "little")
    with file.open("r+b") as cut:
        cut.truncate(8 + length)
    found = plan(Recipe.load(place / "recipe.toml"))
    assert [(s.params, s.bytes) for s in found.stages] == [(s.params, s.bytes) for s in whole.stages]


def test_plan_of_a_model_larger_than_memory(place: Path):
    """The shape of Llama 2 70B: 280 GB in float32."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    (place / "large").mkdir()
    (place / "large/config.json").write_text(json.dumps(config))
    text = (
        '[recipe]\nname = "x"\n[model]\nname = "./large"\n'
        + stage("inherit", layers="first:40")
        + stage("quantize.int8")
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = planned(place, text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert found.stages[0].params == 68_976_648_192
    assert found.stages[1].params == 68_976_648_192 - 40 * (68_976_648_192 - 2 * 32000 * 8192 - 8192) // 80
    assert found.stages[2].params == found.stages[1].params and found.stages[2].bytes < found.stages[1].bytes / 3

    config |= {"dtype": "bfloat16", "num_hidden_layers": 6}
    (place / "large/config.json").write_text(json.dumps(config))
    text = '[recipe]\nname = "x"\n[model]\nname = "./large"\n' + stage("quantize.int4")
    memory = planned(place, text)
    disk = planned(place, text, overrides=["model.offload=true"])
    block = 2 * (2 * 8192**2 + 2 * 1024 * 8192 + 3 * 8192 * 28672)
    assert 2 * block < disk.stages[0].peak_bytes - disk.base_bytes < 2.1 * block
    assert memory.stages[0].peak_bytes - memory.base_bytes == memory.stages[0].bytes
    assert disk.stages[1].bytes == memory.stages[1].bytes  # packed in memory, beside two blocks
    assert disk.stages[1].bytes < disk.stages[1].peak_bytes - disk.base_bytes < disk.stages[1].bytes + 8 * block
    assert disk.disk_bytes == memory.disk_bytes + memory.stages[0].bytes
    assert "offload = true" in memory.shortage and "offload" not in disk.shortage


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_plan_knows_how_weights_are_stored_from_their_headers(place: Path, kind: str):
    import torch
    from safetensors.torch import load_file, save_file

    file = place / "model/model.safetensors"
    tensors = {name: tensor.to(getattr(torch, kind)) for name, tensor in load_file(file).items()}
    names, half = list(tensors), len(tensors) // 2
    file.unlink()
    for number, part in enumerate((names[:half], names[half:]), 1):  # in two files, with an index
        save_file({name: tensors[name] for name in part}, file.with_name(f"model-0000{number}-of-00002.safetensors"))
    places = {name: f"model-0000{1 + (number >= half)}-of-00002.safetensors" for number, name in enumerate(names)}
    (place / "model/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((place / "model/config.json").read_text())
    for dtype in ({}, {"dtype": kind}):
        (place / "model/config.json").write_text(
            json.dumps({key: value for key, value in config.items() if key != "dtype"} | dtype)
        )
        recipe = Recipe.load(place / "recipe.toml")
        found, skeleton, model = plan(recipe), zoo.load(place / "model", device="meta"), zoo.load(place / "model")
        assert found.stored == kind == model.stored == skeleton.stored == skeleton.dtype
        assert (
            found.stages[0].bytes
            == found.stages[0].params * (2 if kind == "bfloat16" else 4)
            == model.bytes
            == skeleton.bytes
        )
        apply(model, "inherit", {"layers": "first:1"})
        apply(model, "quantize.int8")
        text = HEAD + stage("inherit", layers="first:1") + stage("quantize.int8")
        assert [(s.params, s.bytes) for s in planned(place, text).stages][-1] == (model.params, model.bytes)


def test_earlier_states_follow_the_blocks_they_belong_to(place: Path):
    """Block 0 is made sparse and then dropped; what was block 1 is dense, and a stage that needs dense weights may follow."""
    sparse = stage("prune.magnitude", sparsity=0.5, target="language.blocks[0]")
    last = stage("quantize.int8", target="language.blocks[0]")
    assert (
        len(
            planned(
                place,
                HEAD + stage("quantize.int8", target="language.blocks[0]") + stage("inherit", layers="last:1") + last,
            ).stages
        )
        == 4
    )
    assert "quantize.int8" in refusal(
        place,
        HEAD + stage("quantize.int8", target="language.blocks[0]") + stage("inherit", layers="first:1") + last,
        Refused,
    )
    assert len(planned(place, HEAD + sparse + stage("inherit", layers="last:1")).stages) == 3


# --- what a plan refuses ----------------------------------------------------------------------------------------------


def test_missing_and_empty_data_are_named_with_their_key(place: Path):
    (place / "none").mkdir()
    for reference, sentence in (
        (
            "text[:4]",
            "recipe.toml, line 10, [data] train: No data source or file called 'text'. Did you mean 'texts'? Sources: ",
        ),
        ("texts[99:]", "recipe.toml, line 10, [data] train: 'texts[99:]' holds no records (6 before the slice)."),
        (
            "none",
            "recipe.toml, line 10, [data] train: none holds neither data files (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), text files (.txt, .md, .rst, .py, .text) nor images (.png, .jpg, .jpeg, ...).",
        ),
    ):
        assert refusal(place, RECIPE.replace('train = "texts[:4]"', f'train = "{reference}"'), DataError).startswith(
            sentence
        )
    found = refusal(place, RECIPE.replace('train = "texts[:4]"\n', 'trian = "texts[:4]"\n'), DataError)
    assert found == (
        "recipe.toml, line 22, stage 3 (distill): it needs train data: add `train = \"...\"` to the [data] table. Did you mean 'trian'?"
    )
    found = refusal(place, RECIPE.replace('test = "texts[4:]"\n', ""), RecipeError)
    assert (
        found == 'recipe.toml, line 31, [evaluate]: perplexity needs test data: add `test = "..."` to the [data] table.'
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./modl", "recipe.toml, line 7, [model] name: modl does not exist. Did you mean"),
        ("tiny-cod", "recipe.toml, line 7, [model] name: No model named 'tiny-cod'. Did you mean 'tiny-code'?"),
    ],
)
def test_an_unknown_model_is_named_with_its_line(place: Path, name: str, sentence: str):
    found = refusal(place, RECIPE.replace("./model", name), UnknownName)
    assert found.startswith(sentence.partition(" Did")[0])


def test_weights_that_are_not_there_are_known_to_the_plan(place: Path):
    text = RECIPE.replace('name = "./model"', 'name = "tiny-code"\nweights = "./wights"')
    assert refusal(place, text, RequestError).startswith(
        "recipe.toml, line 8, [model] weights: weights='./wights' is neither 'auto', 'random' nor 'dequantized'"
    )


@pytest.mark.parametrize("of", ["model", "teacher"])
def test_weights_of_another_format_are_no_plan(place: Path, of: str):
    from twins import twin

    folder = place / "bare"
    twin("llama").save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = RECIPE.replace("./model", "./bare") if of == "model" else HEAD + stage("distill", teacher="./bare", steps=1)
    assert "holds pytorch_model.bin, and no .safetensors file; other weight formats" in refusal(
        place, text, ArtifactError
    )


def test_an_unknown_target_is_named_with_what_there_is(place: Path):
    found = refusal(place, HEAD + stage("inherit", layers="first:1", target="langage"), UnknownName)
    assert (
        found.startswith("recipe.toml, line 15, stage 1 (inherit): ")
        and "'langage'" in found
        and "Did you mean 'language'?" in found
    )


def test_more_blocks_than_there_are_is_refused(place: Path):
    found = refusal(place, HEAD + stage("inherit", layers="first:9"), Refused)
    assert found.startswith("recipe.toml, line 15, stage 1 (inherit): ") and "9" in found and "2" in found


@pytest.mark.parametrize(
    "use", ["distill", "train", "prune.magnitude", "prune.structured", "lowrank.svd", "share.ffn", "quantize.nf4"]
)
def test_what_cannot_follow_packed_weights_says_why_and_what_to_do(place: Path, use: str):
    options = {
        "prune.magnitude": {"sparsity": 0.5},
        "prune.structured": {"ffn": 48},
        "lowrank.svd": {"rank": 4},
        "share.ffn": {},
    }.get(use, {})
    found = refusal(place, HEAD + stage("quantize.int8") + stage(use, **options), Refused)
    assert found.startswith(f"recipe.toml, line 18, stage 2 ({use}): ")
    assert "packed (8 bits) by stage 1 (quantize.int8)" in found
    assert ("Use one of them" if use.startswith("quantize") else f"Put {use} before quantize.int8") in found


def test_teachers_are_checked_by_the_plan(place: Path):
    found = refusal(
        place, HEAD + stage("inherit", layers="first:1") + stage("distill", teacher="tiny-cod"), UnknownName
    )
    assert found.startswith(
        "recipe.toml, line 19, stage 2 (distill): teacher: No model named 'tiny-cod'. Did you mean 'tiny-code'?"
    )
    assert planned(place, HEAD + stage("distill", teacher="./model")).licenses.keys() == {"model"}


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ([{"use": "kll"}], "No loss named 'kll'. Did you mean 'kl'? Losses: kl, cross-entropy, hidden"),
        (
            [{"use": "kl", "temprature": 2.0}],
            "loss kl: 'temprature' is not an option. Did you mean 'temperature'? Options: weight, temperature.",
        ),
        ([{"use": "kl", "weight": -1}], "loss kl: weight = -1: input should be greater than or equal to 0."),
        ([{"use": "kl"}, {"use": "kl"}], "loss 'kl' is listed twice; give it one weight."),
    ],
    ids=["name", "option", "range", "twice"],
)
def test_a_wrong_loss_is_named_with_its_stage(place: Path, loss: Any, sentence: str):
    inline = (
        "["
        + ", ".join("{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in one.items()) + "}" for one in loss)
        + "]"
    )
    (place / "recipe.toml").write_text(HEAD + f'\n[[stage]]\nuse = "distill"\nloss = {inline}\n')
    with pytest.raises(RequestError) as caught:
        plan(Recipe.load(place / "recipe.toml"))
    assert str(caught.value).startswith(
        f"{place}/recipe.toml, line {15 if loss else 17}, stage 1 (distill): {sentence}"
    )


def test_tables_of_one_tokenizer_may_be_padded_to_different_lengths(place: Path):
    checkpoint(place / "other", vocab_size=400)
    assert planned(place, HEAD + stage("distill", teacher="./other", length=16)).stages[1].use == "distill"
    begin = "recipe.toml, line 15, stage 1 (distill): distill compares distributions over one vocabulary: "
    remedy = " Choose a teacher with the same tokenizer."
    tokens = zoo.load(place / "model").processor
    tokens.add_special_tokens({"additional_special_tokens": ["<more>"]})
    tokens.save_pretrained(place / "other")
    found = refusal(place, HEAD + stage("distill", teacher="./other"), Refused)
    assert found == f"{begin}token 320 ('<more>') is one of the teacher other, and none of model.{remedy}"
    for file in (place / "other").glob("*token*"):
        file.unlink()
    checkpoint(place / "far", vocab_size=2000)
    for file in (place / "far").glob("*token*"):
        file.unlink()
    found = refusal(place, HEAD + stage("distill", teacher="./far"), Refused)
    assert found == f"{begin}model has 320 tokens, the teacher far 2000.{remedy}"


@pytest.mark.parametrize("use", ["prune.structured", "inherit"])
def test_what_is_cut_is_chosen_by_calibration_data_where_there_is_some(place: Path, use: str):
    """Resolved in the plan, and by name in what is recorded; the choice that harms says so."""
    option = {"prune.structured": "importance", "inherit": "layers"}[use]
    good, bad = {"prune.structured": ("activation", "magnitude"), "inherit": ("influence:2", "first:2")}[use]
    auto = stage(use, **({"ffn": 48} if use == "prune.structured" else {"layers": "auto:2"}))
    written = stage(use, **({"ffn": 48} if use == "prune.structured" else {}), **{option: good})
    without = HEAD.replace('calibration = "texts[:2]"\n', "")
    blind = "which harms trained models far more than"

    found, same, other = (planned(place, text) for text in (HEAD + auto, HEAD + written, without + auto))
    assert found.stages[1].options[option] == good and blind not in found.stages[1].note
    assert other.stages[1].options[option] == bad and blind in other.stages[1].note
    assert "calibration data in [data]" in other.stages[1].note
    names = [names_of(one.recipe, one).stage(one.recipe.stages[0]) for one in (found, same, other)]
    assert names[0] == names[1] != names[2]
    random = without.replace('name = "./model"', 'name = "./model"\nweights = "random"')
    assert blind not in planned(place, random + auto).stages[1].note


@pytest.mark.parametrize("data", [True, False])
def test_a_stage_from_python_is_recorded_as_it_was_resolved(place: Path, data: bool):
    texts = {"calibration": open_data(str(place / "texts"))} if data else {}
    model = zoo.load(place / "model")
    apply(model, "prune.structured", {"ffn": 48, "length": 16}, Context(data=texts))
    apply(model, "inherit", {"layers": "auto:1", "keep_ends": False, "length": 16}, Context(data=texts))
    assert model.lineage[0].options["importance"] == ("activation" if data else "magnitude")
    assert model.lineage[1].options["layers"] == ("influence:1" if data else "first:1")


def test_a_teacher_with_another_tokenizer_is_refused(place: Path):
    """Of the same size: only the tokens themselves show it."""
    from tiny import TEXTS, tokenizer

    shutil.copytree(place / "model", place / "other")
    tokenizer([text.upper() for text in TEXTS.values()]).save_pretrained(place / "other")
    found = refusal(place, HEAD + stage("distill", teacher="./other"), Refused)
    assert found.startswith(
        "recipe.toml, line 15, stage 1 (distill): distill compares distributions over one vocabulary: token "
    )
    assert found.endswith(" to the teacher other. Choose a teacher with the same tokenizer.")


def test_a_new_tokenizer_is_for_weights_that_are_not_trained_yet(place: Path):
    bpe, train = stage("vocabulary.bpe"), stage("train", steps=2, length=16)
    trained = "the weights of model are trained on the tokens of the tokenizer they have"
    found = refusal(place, HEAD + bpe, Refused)
    assert found == (
        f"recipe.toml, line 15, stage 1 (vocabulary.bpe): vocabulary.bpe: {trained}, and a new one would number others. "
        'Begin with weights = "random" in [model], and train afterwards.'
    )
    drawn = HEAD.replace('name = "./model"', 'name = "./model"\nweights = "random"')
    assert len(planned(place, drawn + bpe + train).stages) == 3
    assert trained in refusal(place, drawn + train + bpe, Refused)


def test_the_plan_says_that_an_untrained_teacher_teaches_nothing(place: Path):
    sentence = "The teacher is the original, whose weights are random"
    text = RECIPE.replace("[model]", '[model]\nweights = "random"')
    noted = [sentence in one.note for one in planned(place, text).stages]
    assert noted == [one.use == "distill" for one in planned(place, text).stages]
    assert not any(sentence in one.note for one in planned(place, RECIPE).stages)


def test_random_weights_are_not_drawn_for_a_plan(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zoo.loading.load.build_random", None)
    drawn = HEAD.replace('name = "./model"', 'name = "./model"\nweights = "random"')
    assert planned(place, drawn + stage("inherit", layers="first:1")).stages[0].params > 0


EVALUATE = '\n[evaluate]\ntasks = ["perplexity"]\n'


@pytest.mark.parametrize(
    ("base", "change", "sentence"),
    [
        (
            "llama-tied",
            'prompts = ["a", ""]',
            "line 21, [evaluate] prompts: The prompt is empty: pass some text to continue.",
        ),
        ("llama-tied", f'prompts = ["{"def f(): " * 40}"]', "line 21, [evaluate] prompts: The prompt has "),
        (
            "bert",
            'prompts = ["a"]',
            "line 21, [evaluate] prompts: bert fills in no words: its tokenizer has no mask token.",
        ),
        (
            "bert",
            "",
            "line 20, [evaluate] tasks: perplexity of a masked-lm model needs a mask token, and the tokenizer of bert has none.",
        ),
    ],
    ids=["empty prompt", "long prompt", "prompt of a masked model", "no mask token"],
)
def test_an_evaluation_that_does_not_fit_the_model_is_refused_before_any_work(
    place: Path, base: str, change: str, sentence: str
):
    checkpoint(place / base, base)
    text = HEAD.replace("./model", f"./{base}") + stage("inherit", layers="first:1") + EVALUATE + change + "\n"
    assert refusal(place, text, RequestError).startswith(f"recipe.toml, {sentence}")


@pytest.mark.parametrize("use", ["distill", "train", "lowrank.svd"])
def test_data_shorter_than_one_window_is_refused_before_any_work(place: Path, use: str):
    (place / "short.txt").write_text("one two")
    text = HEAD.replace("texts[:4]", "short.txt").replace("texts[:2]", "short.txt")
    found = refusal(place, text + stage(use, length=32, **({"ratio": 0.5} if use == "lowrank.svd" else {})), DataError)
    assert found.startswith(f"recipe.toml, line 15, stage 1 ({use}): 'short.txt' holds ")
    assert found.endswith(" tokens, fewer than one window of 33; lower `length`, or add text.")


def test_a_long_text_that_is_few_tokens_is_refused_before_any_work(place: Path):
    """A tokenizer of other words finds nothing in it that it knows."""
    (place / "foreign.jsonl").write_text('{"text": "' + "一" * 5000 + '"}\n')
    words = Tokenizer(models.WordLevel({"one": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?").save_pretrained(place / "model")
    found = refusal(place, HEAD.replace("texts[:4]", "foreign.jsonl") + stage("train", length=32), DataError)
    assert found.endswith("'foreign.jsonl' holds 1 tokens, fewer than one window of 33; lower `length`, or add text.")


@pytest.mark.parametrize(
    ("lines", "field", "sentence"),
    [
        (
            [{"text": "def f(): pass\n" * 40}] * 300 + [{"text": "x", "prompt": 5}],
            "",
            "lines.jsonl:301: 'prompt' is int",
        ),
        ([{"question": "a" * 400, "answer": "b"}] * 90, "?text=", "lines.jsonl:1: no field 'text'"),
        ([{"text": ""}] * 9, "", "holds no text to predict"),
    ],
)
def test_records_that_no_language_model_reads_are_refused_by_the_plan(
    place: Path, lines: list[dict[str, Any]], field: str, sentence: str
):
    (place / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sentence in refusal(
        place, HEAD.replace("texts[4:]", f"lines.jsonl{field}") + stage("quantize.int8"), DataError
    )
    if "predict" not in sentence:
        training = HEAD.replace("texts[:4]", f"lines.jsonl{field}") + stage("train", length=16)
        assert sentence in refusal(place, training, DataError)


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        ("tiny-t2i", {"text": "a seven"}, "no field 'image', which a text-to-image model learns from."),
        ("tiny-t2i", {"image": "seen.png"}, "no field 'text'."),
        ("tiny-vlm", {"image": "seen.png", "prompt": "What?"}, "no field 'text'."),
        ("tiny-vlm", {"image": None, "prompt": "What?", "text": "7"}, "no field 'image'."),
        ("tiny-vlm", {"image": "seen.png", "prompt": " ", "text": "7"}, "The prompt is empty"),
        ("tiny-vlm", {"image": "seen.png", "prompt": 3, "text": "7"}, "'prompt' is int, not text."),
        ("tiny-vlm", {"image": "seen.png", "prompt": "<image> <image>", "text": "7"}, "The prompt has 2 times <image>"),
    ],
)
def test_records_about_images_are_refused_by_the_plan(place: Path, model: str, fields: dict[str, Any], sentence: str):
    Image.new("RGB", (8, 8)).save(place / "seen.png")
    (place / "seen.jsonl").write_text(json.dumps(fields))
    task = {"tiny-t2i": "velocity-error", "tiny-vlm": "answer-loss"}[model]
    begin = f'[recipe]\nname = "seen"\n[model]\nname = "{model}"\n[data]\n'
    trained = f'train = "seen.jsonl?text={"text" if "text" in fields else ""}"\n' + stage("train")
    tested = trained.replace("train =", "test =", 1).replace(stage("train"), stage("quantize.int8"))
    for body in (trained + "[evaluate]\ntasks = []\n", tested + f'[evaluate]\ntasks = ["{task}"]\n'):
        assert f"seen.jsonl:1: {sentence}" in refusal(place, begin + body, DataError)


def test_a_damaged_header_is_named(place: Path):
    (place / "model/model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{]......")
    assert refusal(place, RECIPE, ArtifactError).startswith(
        "recipe.toml, line 7, [model] name: model/model.safetensors is damaged: its safetensors header cannot be read ("
    )


def test_paths_start_at_the_recipe(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    texts(tmp_path / "elsewhere/texts")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert plan(Recipe.load(place / "recipe.toml")).spec.name == "model"


def test_a_packaged_model_is_planned_and_run_in_the_dtype_it_is_stored_in(place: Path) -> None:
    found = planned(place, HEAD + stage("inherit", layers="first:1"), overrides=["model.name=tiny-code"])
    assert found.stored == "bfloat16"
    assert found.stages[0].bytes == zoo.info("tiny-code").params * 2


# --- what is measured where a recipe does not say ---------------------------------------------------------------------

VIT = "timm:vit_tiny_patch16_224?num_classes=2&img_size=16&patch_size=8&depth=1&embed_dim=24&num_heads=3"
ONE_STAGE = '[recipe]\nname = "tiny"\n\n[model]\nname = "{}"\n\n[data]\ntest = "{}"\n' + stage(
    "prune.magnitude", sparsity=0.5, target="all"
)


def pictures(folder: Path, **fields: str) -> None:
    """`pictures`, a folder of two classes of two images, and `pictures.jsonl`, of the same with the fields."""
    lines = []
    for number, label in enumerate("0101"):
        file = folder / f"pictures/{label}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(file)
        lines.append(json.dumps({"image": str(file.relative_to(folder)), **fields}) + "\n")
    (folder / "pictures.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    ("model", "test", "task"),
    [
        ("./model", "texts[4:]", "perplexity"),
        (VIT, "pictures", "accuracy"),
        ("tiny-vlm", "reading:test[:4]", "exact-match"),
        ("tiny-t2i", "digits-captions:test[:4]", "prompt-agreement"),
        ("tiny-t2i", "pictures.jsonl", "velocity-error"),
    ],
    ids=["language", "classifier", "vision-language", "digits", "other images"],
)
def test_a_recipe_that_names_no_tasks_is_measured_as_suits_its_model(
    place: Path, model: str, test: str, task: str, capsys: pytest.CaptureFixture[str]
):
    pictures(place, text="red")
    weights = ["--set", "model.weights=random"] if model == VIT else []
    (place / "recipe.toml").write_text(ONE_STAGE.format(model, test))
    assert cli.main(["plan", str(place / "recipe.toml"), *weights]) == 0
    said = capsys.readouterr().out
    assert f"  measures: {task} (the recipe names no tasks, and this suits the model)\n" in said
    assert cli.main(["plan", str(place / "recipe.toml"), "--json", *weights]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == [task] and found["usual_task"] == task


@pytest.mark.parametrize(
    ("model", "test", "sentence"),
    [
        (VIT, "pictures.jsonl", "recipe.toml, [evaluate] tasks: pictures.jsonl:1: "),
        (VIT, "texts[4:]", "recipe.toml, [evaluate] tasks: texts/take.py: "),
        ("tiny-vlm", "pictures.jsonl", "recipe.toml, [evaluate] tasks: pictures.jsonl:1: no field 'prompt'. "),
        ("tiny-vlm", "texts[4:]", "recipe.toml, [evaluate] tasks: texts/take.py: no field 'prompt'. "),
        ("tiny-t2i", "digits.jsonl", "recipe.toml, [evaluate] tasks: digits.jsonl:1: prompt-agreement needs "),
        ("tiny-t2i", "texts[4:]", "recipe.toml, [evaluate] tasks: texts/take.py: no field 'image', which a "),
    ],
    ids=["no label", "text for a classifier", "no question", "text for a reader of images", "no digit", "no image"],
)
def test_data_that_the_usual_task_cannot_read_is_refused_by_the_plan(place: Path, model: str, test: str, sentence: str):
    pictures(place, digit="ten", text="a ten")
    shutil.copy(place / "pictures.jsonl", place / "digits.jsonl")
    drawn = ONE_STAGE.replace("[data]", 'weights = "random"\n\n[data]') if model == VIT else ONE_STAGE
    assert refusal(place, drawn.format(model, test), DataError).startswith(sentence)


def test_what_is_usually_measured_needs_test_data_or_a_word(place: Path):
    text = ONE_STAGE.format("./model", "x").replace("test =", "calibration =").replace('"x"', '"texts"')
    sentence = (
        'recipe.toml, [evaluate]: perplexity needs test data: add `test = "..."` to the [data] table, '
        "or `tasks = []` to [evaluate] to measure nothing."
    )
    assert refusal(place, text, RecipeError) == sentence
    assert planned(place, text + "\n[evaluate]\ntasks = []\n").measured == ()


def test_options_of_the_usual_task_are_taken_and_those_of_another_refused(place: Path):
    text = ONE_STAGE.format("./model", "texts[4:]")
    found = planned(place, text + "\n[evaluate.perplexity]\nmax_tokens = 200\n")
    assert found.recipe.evaluate.options("perplexity") == {"max_tokens": 200}
    assert refusal(place, text + "\n[evaluate.accuracy]\nsamples = 2\n", RecipeError).startswith(
        "recipe.toml, line 15, [evaluate]: 'accuracy' is not an option."
    )


def test_a_classifier_without_tasks_is_run_and_measured(place: Path):
    pictures(place)
    text = ONE_STAGE.format(VIT, "pictures").replace("[data]", 'weights = "random"\n\n[data]')
    (place / "recipe.toml").write_text(text + "\n[evaluate]\nspeed = false\n")
    found = run(Recipe.load(place / "recipe.toml"), out=place / "out")
    assert [sorted(row["metrics"]) for row in found.results["stages"]] == [["accuracy"]] * 2
