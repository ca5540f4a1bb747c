"""Names that several plugins declare: short where that is enough, full everywhere, and kept by what is saved."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outsiders import MODEL, install
from outsiders import zoo as command
from zoo_compress import Recipe, apply
from zoo_compress.losses.resolve import resolve_losses

import zoo
from zoo import catalog, registry
from zoo.artifact import store
from zoo.artifact.manifest import manifest_text
from zoo.data.open import open_data
from zoo.errors import ArtifactError, DataError, PluginError, RequestError, UnknownName
from zoo.loading.locate import locate
from zoo.plugins import manager, registering
from zoo.plugins.names import of_kind, plugin_of, refresh

EVERYTHING = (
    "".join(
        f'[[{kind}]]\nname = "same"\nsummary = "Made up for a test"\n'
        for kind in ("compressor", "loss", "evaluator", "data", "command")
    )
    + '[[family]]\nname = "same"\nsummary = "Made up for a test"\nmodality = "text"\nprefix = "made"\ntask = "causal-lm"\n'
)

PLUGIN = """
from zoo.hooks import hookimpl

@hookimpl
def register_compressors(register): register("same", "{package}.made:Stage")

@hookimpl
def register_losses(register): register("same", "{package}.made:Loss")

@hookimpl
def register_evaluators(register): register("same", "{package}.made:Task")

@hookimpl
def register_data(register): register("same", "{package}.made:Data")

@hookimpl
def register_commands(register): register("same", "{package}.made:command")

@hookimpl
def register_families(register): register("same", "{package}.made:Family")
"""

MADE = '''
from zoo.compressor import Compressor, CompressorOptions, Trait
from zoo.data import Sample
from zoo_compress.losses.rows import ForwardKL
from zoo_slm.language import TransformersText

class Stage(Compressor):
    """Does nothing but say who did it."""

    name = "same"
    Options = CompressorOptions

    def outline(self, model, options): return {{"by": "{package}"}}
    def apply(self, model, options, context): return self.outline(model, options)
    def rebuild(self, model, record): assert record == {{"by": "{package}"}}, record
    def traits(self, record): return {{"lm_head": Trait("made-up")}}

class Loss(ForwardKL): pass
class Family(TransformersText): pass

class Task:
    def measure(self, model, data, *, options): return {{}}

class Data:
    splits = ("train", "test")
    def records(self, split): return [Sample({{"text": split}}, "{package}")]

def command():
    print("{package} ran")
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with two plugins, Out_One and out-two, that declare the same names; forgotten afterwards."""
    place = tmp_path / "site"
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("ZOO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    for package, name in (("out_one", "Out_One"), ("out_two", "out-two")):
        add(place, package, name)
    yield place
    monkeypatch.undo()
    forget()


def add(site: Path, package: str, name: str, *, registry: str = EVERYTHING, model: str = "twin") -> None:
    table = MODEL.format(name=model, params=1).replace('"llama"', '"same"')
    install(site, package, registry=registry + table, code=PLUGIN.format(package=package))
    (site / package / "made.py").write_text(MADE.format(package=package))
    (site / f"{package}-1.0.dist-info/entry_points.txt").write_text(
        f"[zoo.catalog]\n{name} = {package}\n[zoo]\n{name} = {package}.plugin\n"
    )
    forget()


def remove(site: Path, package: str) -> None:
    shutil.rmtree(site / package)
    shutil.rmtree(site / f"{package}-1.0.dist-info")
    forget()


def forget() -> None:
    for module in [module for module in sys.modules if module.startswith("out_")]:
        del sys.modules[module]
    refresh()


def test_a_name_of_two_plugins_belongs_to_neither_and_nothing_is_broken(site: Path):
    one, two = manager.find("out-one"), manager.find("out_two")
    assert (one.name, two.name) == ("Out_One", "out-two")  # shown as declared, whatever was asked
    assert (one.status, two.status) == ("ok", "ok")
    for plugin in (one, two):
        kinds = ("model", "family", "compressor", "loss", "evaluator", "data source", "command")
        said = [
            f"{kind} {'twin' if kind == 'model' else 'same'!r} is declared by plugins Out_One and out-two"
            for kind in kinds
        ]
        assert [note.partition(":")[0] for note in plugin.notes] == [
            *said,
            "prefix 'made' is declared by plugins Out_One and out-two",
        ]
        assert (
            plugin.notes[1]
            == "family 'same' is declared by plugins Out_One and out-two: write 'Out_One:same' or 'out-two:same'."
        )


@pytest.mark.parametrize("kind", ["family", "compressor", "loss", "evaluator", "data", "command"])
def test_an_ambiguous_name_is_refused_and_both_full_names_work(site: Path, kind: str):
    have = {
        "family": registry.family,
        "compressor": registry.compressor,
        "loss": registry.loss,
        "data": registry.data_source,
        "evaluator": registry.evaluator,
        "command": registry.command,
    }[kind]
    with pytest.raises(RequestError) as caught:
        have("same")
    label = "Data source" if kind == "data" else kind.capitalize()
    assert (
        str(caught.value)
        == f"{label} 'same' is declared by plugins Out_One and out-two: write 'Out_One:same' or 'out-two:same'."
    )
    assert {"Out_One:same", "out-two:same"} <= set(of_kind(kind)) and "same" not in of_kind(kind)
    assert have("out.one:same") is have("Out_One:same") and have("OUT_TWO:same") is have("out-two:same")
    assert have("out_one:same").__module__ == "out_one.made" and have("out_two:same").__module__ == "out_two.made"


def test_the_other_gone_the_short_name_is_enough(site: Path):
    remove(site, "out_two")
    assert of_kind("loss")["same"].plugin == "Out_One" and zoo.info("twin").plugin == "Out_One"
    assert registry.loss("same") is registry.loss("out_one:same")


def test_an_ambiguous_model_is_refused_even_beside_a_folder_of_that_name(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "twin").mkdir()
    monkeypatch.chdir(tmp_path)
    sentence = "Model 'twin' is declared by plugins Out_One and out-two: write 'Out_One:twin' or 'out-two:twin'."
    for have in (zoo.info, zoo.load):
        with pytest.raises(RequestError) as caught:
            have("twin")
        assert str(caught.value) == sentence
    assert zoo.info("out_one:twin").plugin == "Out_One" and zoo.info("out_two:twin").name == "twin"
    assert [name for name, spec in catalog.catalogue().items() if spec.name == "twin"] == [
        "Out_One:twin",
        "out-two:twin",
    ]
    done = command("list", site=site)
    assert [line.split()[0] for line in done.stdout.splitlines() if "twin" in line] == ["Out_One:twin", "out-two:twin"]
    assert done.stderr == ""


def test_a_model_takes_the_family_of_its_own_plugin(site: Path):
    assert [type(locate(f"{name}:twin").family).__module__ for name in ("out-one", "out-two")] == [
        "out_one.made",
        "out_two.made",
    ]


def test_a_model_of_a_third_plugin_names_the_family_in_full(site: Path):
    install(site, "out_three", registry=MODEL.format(name="third", params=1).replace('"llama"', '"out-two:same"'))
    refresh()
    assert type(locate("third").family).__module__ == "out_two.made"


def test_a_prefix_of_two_plugins_is_written_with_one_of_them(site: Path):
    with pytest.raises(RequestError) as caught:
        zoo.info("made:thing")
    assert str(caught.value) == (
        "'made:thing': prefix 'made' is declared by plugins Out_One and out-two: write 'Out_One:made' or 'out-two:made'."
    )
    assert zoo.info("out-two:made:thing?depth=2").plugin == "out-two"
    assert zoo.info("out-two:made:thing?depth=2").config == {"architecture": "thing", "model_args": {"depth": 2}}


def test_commands_are_reached_by_full_names(site: Path):
    assert command("out-two:same", site=site).stdout == "out_two ran\n"
    assert command("same", site=site).stderr == (
        "error: Command 'same' is declared by plugins Out_One and out-two: write 'Out_One:same' or 'out-two:same'.\n"
    )
    assert {"Out_One:same", "out-two:same"} <= {
        line.split()[0] for line in command("--help", site=site).stdout.splitlines() if line.strip()
    }


def test_data_is_named_in_full_with_a_split_and_without(site: Path):
    assert [sample.fields["text"] for sample in open_data("out-two:same")] == ["train"]
    assert [(sample.fields["text"], sample.where) for sample in open_data("out_one:same:test[:1]")] == [
        ("test", "out_one")
    ]
    with pytest.raises(DataError, match=r"^Data source 'same' is declared by plugins Out_One and out-two: write"):
        open_data("same:train")


def recipe(use: str = "out-two:same", tasks: str = "out_one:same") -> dict[str, object]:
    return {
        "recipe": {"name": "r"},
        "model": {"name": "tiny-code"},
        "stage": [{"use": use}],
        "evaluate": {"tasks": [tasks]},
    }


def test_a_recipe_names_things_in_full(site: Path):
    found = Recipe.parse(recipe())
    assert (found.stages[0].use, found.stages[0].label) == ("same", "stage 1 (out-two:same)")
    assert type(found.stages[0].compressor).__module__ == "out_two.made"
    assert resolve_losses([{"use": "out_one:same"}])[0][0][1] is registry.loss("Out_One:same")
    with pytest.raises(
        RequestError, match=r"^recipe, stage 1: Compressor 'same' is declared by plugins Out_One and out-two: write"
    ):
        Recipe.parse(recipe(use="same"))
    with pytest.raises(
        RequestError, match=r"^recipe, \[evaluate\]: evaluator 'same' is declared by plugins Out_One and out-two: write"
    ):
        Recipe.parse(recipe(tasks="same"))


@pytest.fixture
def saved(site: Path, tmp_path: Path) -> Path:
    """A model that out-two's stage was applied to."""
    return made(tmp_path / "saved")


def made(path: Path) -> Path:
    model = zoo.load("tiny-code", weights="random")
    apply(model, "out_two:same")
    return model.save(path)


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        zoo.load(path)
    return str(caught.value).replace(str(path), "saved")


def test_a_saved_model_knows_whose_stage_it_was(saved: Path):
    manifest = json.loads((saved / "zoo.json").read_text())
    assert [(stage["use"], stage["plugin"]) for stage in manifest["lineage"]] == [("same", "out-two")]
    assert manifest["family_plugin"] == "zoo_slm"
    assert manifest["plugins"] == {
        "out-two": {"distribution": "out-two", "version": "1.0"},
        "zoo_slm": {"distribution": "zoo-compress", "version": zoo.__version__},
    }
    again = zoo.load(saved)
    assert again.lineage[0].record == {"by": "out_two"}
    assert again.state()["lm_head"][0].stage == "stage 1 (out-two:same)"
    once_more = made(saved.parent / "once-more")
    for file in ("zoo.json", *manifest["files"]):
        assert (once_more / file).read_bytes() == (saved / file).read_bytes(), file


def test_without_its_plugin_a_saved_model_says_which_it_needs(saved: Path, site: Path):
    remove(site, "out_two")
    assert registry.compressor("same").__module__ == "out_one.made"  # which is not taken for it
    assert refusal(saved) == (
        "saved: stage 1 (same) needs plugin out-two, which is not installed: `zoo plugins install out-two`, then load again."
    )
    assert store.verify(saved) == []
    assert command("verify", str(saved), site=site).returncode == 0
    assert command("info", str(saved), site=site).returncode == 0
    (saved / "README.md").write_text("changed")
    assert [file for file, _ in store.verify(saved)] == ["README.md"]


def test_with_its_plugin_disabled_a_saved_model_says_how_to_enable_it(saved: Path, monkeypatch: pytest.MonkeyPatch):
    manager.disable("OUT_TWO")
    assert (
        refusal(saved) == "saved: stage 1 (same) needs plugin out-two, which is disabled: `zoo plugins enable out-two`."
    )
    manager.enable("out_two")
    assert zoo.load(saved).lineage[0].plugin == "out-two"
    monkeypatch.setenv("ZOO_PLUGINS", "zoo_slm")
    assert refusal(saved) == "saved: stage 1 (same) needs plugin out-two, which ZOO_PLUGINS leaves out."


def test_a_version_of_its_plugin_without_the_stage_is_named(saved: Path, site: Path):
    remove(site, "out_two")
    without = EVERYTHING.partition("[[loss]]")
    add(site, "out_two", "out-two", registry="".join(without[1:]))
    assert (
        refusal(saved)
        == "saved: stage 1 (same) is not in plugin out-two 1.0, which is installed; the model was made with version 1.0."
    )


def test_an_artifact_whose_plugin_is_broken_says_why(saved: Path, site: Path):
    (site / "out_two/registry.toml").write_text('api = ">=2"\n')
    forget()
    assert refusal(saved).startswith(
        "saved: stage 1 (same) needs plugin out-two, which cannot be used: needs plugin API >=2, and this zoo"
    )


def test_an_artifact_of_an_older_zoo_is_read(saved: Path, site: Path):
    file = saved / "zoo.json"
    manifest = json.loads(file.read_text())
    del manifest["family_plugin"], manifest["plugins"], manifest["seal"]
    file.write_text(json.dumps({**manifest, "format": 1}))
    assert zoo.load(saved).lineage[0].plugin == "out-two"
    remove(site, "out_two")
    assert (
        refusal(saved)
        == "saved: stage 1 (same) needs plugin out-two, which is not installed; install it, then load again."
    )


def test_a_manifest_cannot_have_anything_installed(saved: Path, site: Path):
    file = saved / "zoo.json"
    text = file.read_text().replace('"distribution": "out-two"', '"distribution": "x; rm -rf ~"')
    file.write_text(manifest_text(json.loads(text)))
    remove(site, "out_two")
    assert (
        refusal(saved)
        == "saved: stage 1 (same) needs plugin out-two, which is not installed; install it, then load again."
    )
    file.write_text(text.replace('"family_plugin": "zoo_slm"', '"family_plugin": 3'))
    assert refusal(saved) == "saved/zoo.json is damaged: family_plugin is no name."


def test_a_saved_family_is_that_of_its_plugin(site: Path, tmp_path: Path):
    config = zoo.info("tiny-code").config | {
        "num_hidden_layers": 1,
        "hidden_size": 12,
        "intermediate_size": 8,
        "vocab_size": 16,
    }
    spec = catalog.ModelSpec("small", "same", "text", "causal-lm", plugin="Out_One", config=config)
    model = zoo.model.model.build_random(registry.family("Out_One:same"), spec)
    path = model.save(tmp_path / "small")
    assert json.loads((path / "zoo.json").read_text())["family_plugin"] == "Out_One"
    assert type(zoo.load(path).family).__module__ == "out_one.made"
    remove(site, "out_one")
    assert refusal(path) == (
        "saved: its family 'same' needs plugin Out_One, which is not installed: `zoo plugins install out-one`, then load again."
    )


def test_a_stage_at_hand_is_known_for_its_own(site: Path):
    from importlib import import_module

    model = zoo.load("tiny-code", weights="random")
    apply(model, import_module("out_two.made").Stage())  # never asked for by name
    assert model.lineage[0].plugin == "out-two"


# --- disabled ---------------------------------------------------------------------------------------------------------


def test_what_is_disabled_is_named_when_it_is_used(site: Path):
    remove(site, "out_one")
    manager.disable("out_two")
    assert "out_two" not in sys.modules
    assert "out-two" not in [plugin.name for plugin in manager.plugins_in_use()]
    assert [plugin.status for plugin in manager.plugins_in_use(disabled=True) if plugin.name == "out-two"] == [
        "disabled"
    ]
    assert manager.find("out_two").disabled and manager.find("out_two").declares("loss") == ("same",)
    said = "comes with plugin out-two, which is disabled: `zoo plugins enable out-two`."
    for have, sentence in (
        (registry.compressor, f"Compressor 'same' {said}"),
        (registry.loss, f"Loss 'same' {said}"),
        (zoo.info, None),
        (open_data, f"Data source 'same' {said}"),
    ):
        name = "twin" if have is zoo.info else "same"
        with pytest.raises(RequestError) as caught:
            have(name)
        assert str(caught.value) == (sentence or f"Model 'twin' {said}")
    with pytest.raises(UnknownName) as unknown:
        registry.compressor("out-two:same")
    assert str(unknown.value) == f"Compressor 'same' {said}"
    with pytest.raises(UnknownName, match=r"^Model 'made:thing' comes with plugin out-two, which is disabled: "):
        zoo.info("made:thing")
    with pytest.raises(PluginError, match=r"^Plugin out-two is disabled: `zoo plugins enable out-two`\.$"):
        manager.load("out-two")
    manager.enable("Out.Two")
    assert registry.compressor("same").name == "same"


def test_disabling_settles_who_has_a_name(site: Path):
    manager.disable("out_one")
    assert plugin_of("loss", "same") == "out-two"


def test_disabling_is_written_whole_and_kept_for_other_processes(site: Path, tmp_path: Path):
    file = manager.disabled_file()
    assert file == tmp_path / "config/plugins.json" and not file.exists()
    manager.disable("out_one")
    manager.disable("Out_One")
    assert json.loads(file.read_text()) == {"disabled": ["Out_One"]}
    done = command("list", "--json", site=site, ZOO_CONFIG_DIR=str(file.parent))
    assert {"twin"} == {spec["name"] for spec in json.loads(done.stdout) if "out" in spec["plugin"]}
    file.write_text(json.dumps({"disabled": ["Out_One", "gone"], "later": 1}))
    refresh()
    manager.enable("gone")
    assert json.loads(file.read_text()) == {"disabled": ["Out_One"], "later": 1}
    assert list(file.parent.iterdir()) == [file]


def test_the_core_and_what_is_not_there_are_not_disabled(site: Path):
    with pytest.raises(
        PluginError, match=r"^Plugin zoo is the core, which everything else needs; it cannot be disabled\.$"
    ):
        manager.disable("zoo")
    with pytest.raises(UnknownName, match=r"^No plugin named 'out-twoo'\. Did you mean 'out-two'\?"):
        manager.disable("out-twoo")
    with pytest.raises(UnknownName, match=r"^No plugin named 'out-twoo'\."):
        manager.enable("out-twoo")
    manager.disabled_file().parent.mkdir()
    manager.disabled_file().write_text('{"disabled": ["zoo"]}')
    refresh()
    assert manager.plugins_in_use()[0].name == "zoo"


def test_the_environment_comes_before_the_file(site: Path, monkeypatch: pytest.MonkeyPatch):
    manager.disable("out_one")
    monkeypatch.setenv("ZOO_PLUGINS", "out.one")
    assert [plugin.name for plugin in manager.plugins_in_use()] == [
        "zoo",
        "Out_One",
    ] and manager.disabled() == frozenset()
    with pytest.raises(
        PluginError, match=r"^ZOO_PLUGINS says which plugins are used; unset it to disable and enable them\.$"
    ):
        manager.enable("out_one")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "list indices must be integers or slices, not str"),
        ('{"disabled": "x"}', "'disabled' is not a list of names"),
        ('{"disabled": [1]}', "'disabled' is not a list of names"),
        (
            "[" * 100_000,
            "maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        ),
        (None, "{file} is not a file"),
    ],
)
def test_a_damaged_file_is_one_warning_and_disables_nothing(site: Path, content: str | None, reason: str):
    file = manager.disabled_file()
    file.parent.mkdir()
    file.mkdir() if content is None else file.write_text(content)
    refresh()
    sentence = f"{file} is damaged, so no plugin is disabled; mend or delete it ({reason.format(file=file)})."
    assert manager.disabled() == frozenset() and manager.disabled_fault() == sentence
    with pytest.raises(PluginError) as caught:
        manager.disable("out_one")
    assert str(caught.value) == sentence
    done = command("list", site=site, ZOO_CONFIG_DIR=str(file.parent))
    assert (done.returncode, done.stderr) == (0, f"warning: {sentence}\n")


def test_a_place_that_cannot_be_written_is_named(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("ZOO_CONFIG_DIR", str(tmp_path / "a-file/config"))
    with pytest.raises(PluginError, match=r"^the list of disabled plugins cannot be written: Not a directory\.$"):
        manager.disable("out_one")


def test_load_seconds_are_of_what_was_loaded(site: Path):
    assert "out-two" not in registering.load_seconds()
    registry.loss("out-two:same")
    (site / "out_one/plugin.py").write_text("import time; time.sleep(0.2); 1 / 0")
    with pytest.raises(PluginError):
        manager.load("out_one")
    assert registering.load_seconds()["out-two"] > 0 and registering.load_seconds()["Out_One"] > 0.2
