"""`zoo.load`: by name and by path, random and empty, and what it says of files that are missing, damaged or unsafe."""

from __future__ import annotations

import json
import re
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from outsiders import install, python
from safetensors.torch import load_file, save_file
from tiny import checkpoint
from twins import tokens
from zoo_compress import apply

import zoo
from zoo.artifact.manifest import manifest_text
from zoo.errors import ArtifactError, RequestError, UnknownName, WeightsUnavailable
from zoo.plugins.names import of_kind

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformers directory, and beside it the same saved as an artifact."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint(folder / "plain", "llama-gqa")
    zoo.load(folder / "plain").save(folder / "saved")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = Path(shutil.copytree(made, tmp_path / "place"))
    monkeypatch.chdir(place)
    return place


@torch.no_grad()
def logits(model: zoo.Model, ids: torch.Tensor) -> torch.Tensor:
    return model.family.forward(model, {"input_ids": ids})


def refusal(kind: type[zoo.ZooError], *args: object, **kwargs: object) -> str:
    with pytest.raises(kind) as caught:
        zoo.load(*args, **kwargs)  # type: ignore[arg-type]
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


# --- by name and by path ----------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_load_by_name_by_path_and_by_a_path_that_looks_like_a_name(place: Path):
    by_name = zoo.load("tiny-code")
    assert by_name.spec.name == "tiny-code" and by_name.params == zoo.info("tiny-code").params
    expected = logits(zoo.load(place / "saved"), tokens())
    for name in ("saved", "./saved", str(place / "saved"), "plain", "./plain/"):
        assert torch.equal(logits(zoo.load(name), tokens()), expected)


def test_a_skeleton_by_name_knows_how_its_weights_are_stored(place: Path):
    """As the plan does, and the disk; with other weights as those are."""
    packaged = zoo.load("tiny-code", device="meta")
    assert (packaged.dtype, packaged.stored, packaged.bytes) == ("float32", "bfloat16", packaged.params * 2)
    assert zoo.load("tiny-code", device="meta", weights="random").stored == "float32"


@pytest.mark.parametrize(("name", "weights"), [("tiny-code", "auto"), ("tiny-code", "random"), ("./saved", "auto")])
def test_a_skeleton_neither_generates_nor_is_saved(place: Path, name: str, weights: str):
    model = zoo.load(name, device="meta", weights=weights)
    for call in (lambda: model.generate("a"), lambda: model.save(place / "new")):
        with pytest.raises(
            RequestError,
            match=r"is on the meta device, which holds no weights; to (run|save) it, load it without device=\"meta\"\.",
        ):
            call()
    assert not (place / "new").exists()


def test_a_name_wins_over_a_folder_of_that_name(place: Path):
    (place / "saved").rename(place / "tiny-code")
    assert zoo.load("tiny-code", device="meta").params == zoo.info("tiny-code").params
    assert (
        zoo.load("./tiny-code", device="meta").params
        == zoo.load(place / "plain", device="meta").params
        != zoo.info("tiny-code").params
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tiny-cod", "No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all"),
        (
            "./tiny-cod",
            "tiny-cod does not exist. Did you mean 'tiny-code'? `zoo list` shows the models that load by name.",
        ),
        ("./plain/config.json", "plain/config.json is a file, not a model directory. `zoo list` shows"),
        ("", "No model named ''. `zoo list` shows all"),
        ("x" * 5000, f"{'x' * 80!r} is no model and no path: File name too long."),
        ("~nobody-at-all/x", "'~nobody-at-all/x' is no model and no path: Could not determine home directory."),
    ],
    ids=["name", "path", "file", "empty", "long", "home"],
)
def test_what_is_not_there_is_named_with_the_nearest(place: Path, name: str, sentence: str):
    assert refusal(UnknownName, name).startswith(sentence)


def test_a_directory_without_a_model_is_refused(place: Path):
    (place / "empty").mkdir()
    assert (
        refusal(RequestError, "./empty")
        == "empty is not a model directory: it holds neither zoo.json nor a known config such as config.json."
    )


def test_dtypes_and_devices(place: Path):
    model = zoo.load("saved", dtype="bfloat16")
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16} and (model.dtype, model.stored) == (
        "bfloat16",
        "float32",
    )
    assert zoo.load("plain", dtype=torch.float16).module.dtype == torch.float16
    assert refusal(RequestError, "saved", dtype="float31") == (
        "dtype 'float31' is not one models run in. Did you mean 'float32'? Dtypes: float32, bfloat16, float16."
    )
    assert zoo.load("saved", device="cpu").device.type == "cpu"
    assert refusal(RequestError, "saved", device="cpux").startswith("device 'cpux' cannot be used here: ")
    if not torch.cuda.is_available():
        assert refusal(RequestError, "tiny-code", device="cuda").startswith("device 'cuda' cannot be used here: ")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_random_weights_are_always_the_same_and_leave_the_random_state(place: Path):
    state = torch.get_rng_state()
    one, two = zoo.load("tiny-code", weights="random"), zoo.load("tiny-code", weights="random")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True))
    assert not torch.equal(
        one.module.get_input_embeddings().weight, zoo.load("tiny-code").module.get_input_embeddings().weight
    )
    plain = zoo.load("plain", weights="random")
    assert plain.origin == "random" and plain.processor is not None and plain.params == zoo.load("plain").params


def test_weights_from_a_directory_or_a_file(place: Path):
    random = zoo.load("tiny-code", weights="random")
    random.save(place / "mine")
    (place / "alone").mkdir()
    shutil.copy(place / "mine/model.safetensors", place / "alone/model.safetensors")
    ids = tokens(length=8)
    for weights in ("mine", place / "mine", "mine/model.safetensors", "alone"):
        model = zoo.load("tiny-code", weights=weights)
        assert (
            torch.equal(logits(model, ids), logits(random, ids)) and model.spec.config == zoo.info("tiny-code").config
        )


def test_weights_of_another_shape_are_refused(place: Path):
    assert refusal(ArtifactError, "tiny-code", weights="./plain").startswith("plain does not hold tiny-code: ")
    assert refusal(ArtifactError, "tiny-code", weights="./saved").startswith("saved does not hold tiny-code: ")
    assert refusal(ArtifactError, "tiny-code", weights="plain/model.safetensors").startswith(
        "plain/model.safetensors: tensor "
    )


@pytest.mark.parametrize("device", [None, "meta"])
def test_wrong_weights_are_refused_whatever_the_device(place: Path, device: str | None):
    assert refusal(RequestError, "tiny-code", weights="randon", device=device) == (
        "weights='randon' is neither 'auto', 'random' nor 'dequantized', nor a directory or file that exists. Did you mean 'random'?"
    )
    assert refusal(RequestError, "./plain", weights="saved", device=device) == (
        "weights='saved' goes with a name of `zoo list`; plain is a directory with weights of its own."
    )


def test_the_meta_device_builds_seventy_billion_parameters_in_no_memory(tmp_path: Path):
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    zoo.load("tiny-code", device="meta")  # imports
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    model = zoo.load(tmp_path, device="meta")
    assert model.params == 70_553_706_496 and all(p.is_meta for p in model.module.parameters())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert time.process_time() - begun < 20


def test_weights_that_cannot_be_had_say_what_to_do(tmp_path: Path):
    """A catalogue-only plugin, its weights on a hub this machine does not reach."""
    entry = (
        '[[model]]\nname = "{name}"\nfamily = "llama"\nmodality = "text"\ntask = "causal-lm"\nlicense = "MIT"\nparams = 5\nsummary = "x"\n{more}'
        '[model.config]\nmodel_type = "llama"\nhidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 1\nvocab_size = 8\n'
    )
    install(
        tmp_path,
        "out_hub",
        registry=entry.format(name="far", more='hub = "org/far"\nrevision = "abc"\n')
        + entry.format(name="none", more=""),
    )
    code = "import zoo\nprint(zoo.load('far', device='meta').module.config.hidden_size)\nfor name in ('far', 'none'):\n    try:\n        zoo.load(name)\n    except zoo.WeightsUnavailable as e:\n        print(e)"
    done = python("-c", code, site=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    size, far, none = done.stdout.splitlines()
    assert size == "8"
    assert far.startswith("far: org/far is not in the local hub cache (HF_HOME, HF_HUB_CACHE) and cannot be fetched (")
    assert far.endswith("Go online once (and unset HF_HUB_OFFLINE), or pass weights=DIR or weights='random'.")
    assert (
        none == "none has no published weights. Pass weights='random' for untrained ones, or weights=DIR for your own."
    )
    done = python("-m", "zoo", "run", "far", "-p", "x", site=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.stderr.endswith("unset HF_HUB_OFFLINE), or give the directory of a model that you have.\n")
    assert "weights=" not in done.stderr
    assert issubclass(WeightsUnavailable, zoo.ZooError) and WeightsUnavailable.exit_code == 1


# --- plain checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("name", ["qwen3", "gpt-neox", "opt", "bert", "gpt2", "llama-tied"])
def test_a_plain_checkpoint_loads_as_transformers_loads_it(tmp_path: Path, name: str):
    import transformers

    checkpoint(tmp_path / name, name)
    auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    with torch.no_grad():
        expected = auto.from_pretrained(tmp_path / name)(input_ids=tokens()).logits
    model = zoo.load(tmp_path / name)
    assert torch.equal(logits(model, tokens()), expected) and not model.module.training
    assert model.spec.task == ("masked-lm" if name == "bert" else "causal-lm") and model.processor is not None
    skeleton = zoo.load(tmp_path / name, device="meta")
    assert (skeleton.params, skeleton.tensors().keys()) == (model.params, model.tensors().keys())
    again = zoo.load(model.save(tmp_path / "saved"))
    assert torch.equal(logits(again, tokens()), expected)


def test_loading_says_nothing(place: Path, capfd: pytest.CaptureFixture[str]):
    zoo.load("plain"), zoo.load("saved")
    assert capfd.readouterr() == ("", "")


@pytest.mark.quick
def test_pickles_are_not_read(place: Path):
    (place / "plain/model.safetensors").unlink()
    torch.save({}, place / "plain/pytorch_model.bin")
    assert refusal(ArtifactError, "./plain") == "plain holds no .safetensors file; other weight formats are not read."
    torch.save({}, place / "weights.bin")
    assert (
        refusal(ArtifactError, "tiny-code", weights="weights.bin")
        == "weights.bin is not a .safetensors file; other weight formats are not read."
    )


def test_code_from_a_checkpoint_is_not_run(place: Path):
    """Beside a class that transformers has, what names code is left over, at any depth; without one, the model is refused."""
    config = json.loads((place / "plain/config.json").read_text())
    evil = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (place / "plain/evil.py").write_text("raise SystemExit('run')\n")
    before = zoo.load("./plain")
    (place / "plain/config.json").write_text(
        json.dumps({**config, **evil, "rope_parameters": {**config["rope_parameters"], **evil}})
    )
    after = zoo.load("./plain")
    assert all(torch.equal(a, b) for a, b in zip(before.tensors().values(), after.tensors().values(), strict=True))
    assert "auto_map" not in json.dumps(after.spec.config)
    (place / "plain/config.json").write_text(json.dumps({**config, **evil, "model_type": "evil"}))
    for device in (None, "meta"):
        assert refusal(ArtifactError, "./plain", device=device) == (
            "plain/config.json asks for remote code ('auto_map'); zoo never runs code from a checkpoint."
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "no-such"}, "plain/config.json: transformers cannot build a causal-lm of type 'no-such': "),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "plain holds a LlamaForSequenceClassification (llama), a text classifier; text models need",
        ),
    ],
)
def test_what_no_family_builds_is_refused(place: Path, change: dict[str, object], sentence: str):
    config = json.loads((place / "plain/config.json").read_text())
    (place / "plain/config.json").write_text(json.dumps({**config, **change}))
    assert refusal(RequestError, "./plain", device="meta").startswith(sentence)


def test_a_config_that_is_not_one_is_named(place: Path):
    (place / "plain/config.json").write_text("{")
    assert (
        refusal(ArtifactError, "./plain")
        == "plain/config.json is not a transformers config with a model_type and architectures."
    )


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_named_with_the_tensor_that_is_cut(place: Path):
    file = place / "plain/model.safetensors"
    whole, last = file.stat().st_size, max(load_file(file))
    with file.open("r+b") as cut:
        cut.truncate(whole - 8)
    found = refusal(ArtifactError, "./plain")
    assert found.startswith(f"plain/model.safetensors is cut short at {whole - 8} bytes: tensor '") and found.endswith(
        f"ends at byte {whole}."
    )
    assert found.split("'")[1] in (last, *load_file(place / "saved/model.safetensors"))
    shutil.copy(place / "saved/model.safetensors", "own.safetensors")
    with Path("own.safetensors").open("r+b") as cut:
        cut.truncate(9000)
    assert refusal(ArtifactError, "tiny-code", weights="own.safetensors").startswith(
        "own.safetensors is cut short at 9000 bytes: tensor '"
    )
    for rubbish in (b"", b"no", b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": 1 }'):
        file.write_bytes(rubbish)
        assert refusal(ArtifactError, "./plain").startswith(
            "plain/model.safetensors is damaged: its safetensors header cannot be read ("
        )


def test_a_damaged_artifact_is_named_by_its_file(place: Path):
    file = place / "saved/model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert refusal(ArtifactError, "./saved") == (
        f"saved/model.safetensors does not have the xxh3 of the manifest from byte 0 to {len(good):,}; the artifact is damaged, "
        "so nothing was loaded."
    )
    file.write_bytes(good[:-1])
    assert refusal(ArtifactError, "./saved").startswith(
        f"saved/model.safetensors has {len(good) - 1} bytes, the manifest says {len(good)};"
    )
    file.unlink()
    assert refusal(ArtifactError, "./saved").startswith("saved/model.safetensors is missing;")


@pytest.mark.quick
def test_a_missing_or_misshapen_tensor_is_never_filled_with_random_numbers(
    place: Path, capfd: pytest.CaptureFixture[str]
):
    file = place / "plain/model.safetensors"
    good = load_file(file)
    save_file({name: tensor for name, tensor in good.items() if name != UP}, file, metadata={"format": "pt"})
    assert refusal(ArtifactError, "./plain") == f"plain: tensor '{UP}' is missing; the model of its config.json has it."
    save_file({**good, UP: good[UP][:5].contiguous()}, file, metadata={"format": "pt"})
    assert (
        refusal(ArtifactError, "./plain")
        == f"plain: '{UP}' has shape (5, 32), the model of its config.json expects (64, 32)."
    )
    layer = UP.rpartition("layers.")[0] + "layers."
    save_file({**good, f"{layer}2.mlp.up_proj.weight": good[UP].clone()}, file, metadata={"format": "pt"})
    assert (
        refusal(ArtifactError, "./plain")
        == f"plain: tensor '{layer}2.mlp.up_proj.weight' is not part of the model of its config.json."
    )
    other = {"score.weight": good[UP].clone(), f"{layer}0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**good, **other}, file, metadata={"format": "pt"})
    assert zoo.load("./plain").params > 0  # the head of another task, and a table that is computed
    assert capfd.readouterr() == ("", "")
    own = load_file(registry_weights())
    save_file({**own, UP: own[UP][:5].contiguous()}, "own.safetensors")
    assert (
        refusal(ArtifactError, "tiny-code", weights="own.safetensors")
        == f"own.safetensors: '{UP}' has shape (5, 192), the model expects (512, 192)."
    )
    save_file({name: tensor for name, tensor in own.items() if name != UP}, "own.safetensors")
    assert (
        refusal(ArtifactError, "tiny-code", weights="own.safetensors") == f"own.safetensors: tensor '{UP}' is missing."
    )
    save_file({**own, "more": own[UP].clone()}, "own.safetensors")
    assert (
        refusal(ArtifactError, "tiny-code", weights="own.safetensors")
        == "own.safetensors: tensor 'more' is not part of the model."
    )


def registry_weights() -> Path:
    from zoo.loading import weights

    folder = weights.packaged_at(zoo.info("tiny-code"))
    assert folder is not None
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: "{", "saved/zoo.json is damaged: "),
        (
            lambda m: json.dumps({**m, "format": 99}),
            "saved/zoo.json has format 99; this zoo reads up to 3: pip install --upgrade zoo-compress.",
        ),
        (lambda m: manifest_text({k: v for k, v in m.items() if k != "spec"}), "saved/zoo.json is damaged: 'spec'."),
        (lambda m: "[]", "saved/zoo.json is damaged: no format version."),
    ],
    ids=["half", "newer", "no spec", "list"],
)
def test_a_manifest_that_does_not_fit_is_named(place: Path, change: object, sentence: str):
    file = place / "saved/zoo.json"
    file.write_text(change(json.loads(file.read_text())))  # type: ignore[operator]
    assert refusal(ArtifactError, "./saved").startswith(sentence)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"lineage": [{"use": "inherit", "version": 1, "options": {}, "record": {}}]},
            r"saved/zoo.json: the record of stage 1 \(inherit\) does not fit the model \(KeyError: 'stacks'\)\.",
        ),
        ({"lineage": [{}]}, r"saved/zoo.json is damaged: stage 1 of the lineage has no use\."),
        ({"files": []}, r"saved/zoo.json is damaged: 'files' is list, not dict\."),
        ({"files": {}}, r"saved/zoo.json is damaged: it lists no weight file\."),
        (
            {"files": {"other.safetensors": {"bytes": 1, "sha256": "", "xxh3": [""]}}},
            r"saved/zoo.json is damaged: it does not list model.safetensors\.",
        ),
        (
            {"files": {"model.safetensors": {"bytes": 2**26 + 1, "sha256": "", "xxh3": [""]}}},
            r"saved/zoo.json is damaged: file 'model.safetensors' has not one xxh3 for each 67,108,864 bytes\.",
        ),
        (
            {"files": {"model.safetensors": {"bytes": 1, "sha256": ""}}},
            r"saved/zoo.json is damaged: file 'model.safetensors' has not one xxh3 for each 67,108,864 bytes\.",
        ),
        (
            {"files": {"model.safetensors": {"sha256": "0"}}},
            r"saved/zoo.json is damaged: file 'model.safetensors' has no size and hash\.",
        ),
        ({"dtype": "float7"}, r"saved/zoo.json is damaged: dtype 'float7' is none of float32, bfloat16, float16\."),
    ],
    ids=["record", "stage", "list", "no files", "other files", "chunk", "no xxh3", "no size", "dtype"],
)
@pytest.mark.parametrize("device", [None, "meta"])
def test_a_damaged_manifest_is_a_sentence(place: Path, change: dict[str, object], sentence: str, device: str | None):
    file = place / "saved/zoo.json"
    file.write_text(manifest_text(json.loads(file.read_text()) | change))
    assert re.fullmatch(sentence, refusal(ArtifactError, "./saved", device=device))


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": -1},
        {"architectures": [3]},
        {"architectures": 7},
        {"hidden_size": 0},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_a_damaged_config_is_a_sentence(place: Path, change: dict[str, object]):
    file = place / "plain/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for device in (None, "meta"):
        with pytest.raises(zoo.ZooError) as caught:
            zoo.load("./plain", device=device)
        assert "\n" not in str(caught.value) and "plain" in str(caught.value)


def test_a_damaged_tokenizer_is_named(place: Path):
    file = place / "plain/tokenizer.json"
    file.write_text(file.read_text()[:-100])
    assert refusal(ArtifactError, "./plain").startswith("plain/tokenizer.json is damaged: ")
    file.write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    assert refusal(ArtifactError, "./plain").startswith("plain/tokenizer.json is damaged: ")


def test_an_artifact_of_a_family_that_is_not_installed_names_the_plugin(place: Path):
    file = place / "saved/zoo.json"
    manifest = json.loads(file.read_text())
    manifest["spec"] |= {"family": "wonder", "plugin": "zoo_wonder"}
    manifest |= {
        "family_plugin": "zoo_wonder",
        "plugins": {"zoo_wonder": {"distribution": "zoo-of-wonders", "version": "2.0"}},
    }
    file.write_text(manifest_text(manifest))
    needs = "saved: its family 'wonder' needs plugin zoo_wonder, which is not installed"
    assert refusal(ArtifactError, "./saved") == f"{needs}: `zoo plugins install zoo-of-wonders`, then load again."
    del manifest["family_plugin"], manifest["plugins"]  # as an older zoo wrote it
    file.write_text(json.dumps({**manifest, "format": 1}))
    assert refusal(ArtifactError, "./saved") == f"{needs}; install it, then load again."
    assert "wonder" not in of_kind("family")


def test_packed_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    model = zoo.load("tiny-code", weights="random")
    apply(model, "quantize.int8")
    saved = model.save(tmp_path / "packed")
    with pytest.raises(RequestError, match="has packed weights, which cannot be drawn at random"):
        zoo.load(saved, weights="random")
