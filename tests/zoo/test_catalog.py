"""The catalogue: what a registry.toml may say, what is said when it does not fit, and how models are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from outsiders import MODEL, install

import zoo
from zoo import catalog, registry, weights
from zoo.catalog import ModelSpec, parse_count
from zoo.declarations import read
from zoo.errors import PluginError, RequestError, UnknownName


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path for plugins; it and what was found there are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    monkeypatch.delenv("ZOO_STRICT", raising=False)
    registry.refresh()
    yield tmp_path
    monkeypatch.undo()
    registry.refresh()


def fault_of(tmp_path: Path, text: str) -> str:
    """The sentence `read` refuses a registry.toml with, the path shortened."""
    file = tmp_path / "registry.toml"
    file.write_text(text)
    with pytest.raises(PluginError) as caught:
        read(file, plugin="p")
    return str(caught.value).replace(str(file), "registry.toml")


def test_every_builtin_model_has_what_the_catalogue_promises():
    assert "tiny-code" in catalog.catalogue()
    for name, spec in catalog.catalogue().items():
        assert name == spec.name
        assert spec.license and spec.summary and spec.params > 0
        assert spec.family in registry.names("family")


def test_a_spec_survives_json():
    spec = zoo.info("tiny-code")
    assert ModelSpec(**json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_can_be_a_key():
    assert {zoo.info("tiny-code"): 1}[zoo.info("tiny-code")] == 1


def test_info_suggests_the_nearest_name():
    count = len(catalog.catalogue())
    with pytest.raises(UnknownName) as caught:
        zoo.info("tiny-cod")
    assert str(caught.value) == f"No model named 'tiny-cod'. Did you mean 'tiny-code'? `zoo list` shows all {count}."


def test_models_filters(site: Path):
    install(site, "fam_small", registry=MODEL.format(name="small", params=1_000))
    install(site, "fam_large", registry=MODEL.format(name="large", params=2_000_000_000))
    names = {spec.name for spec in zoo.models(max_params="1.5B")}
    assert "small" in names and "large" not in names
    assert {spec.name for spec in zoo.models(license="mit")} == {"small", "large"}
    assert {"small", "large"} <= {spec.name for spec in zoo.models(modality="text", family="llama")}
    assert zoo.models(modality="smell") == []
    assert {spec.name for spec in zoo.models(license="MIT", max_params=1_000)} == {"small"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5B", 1_500_000_000), ("135M", 135_000_000), ("7k", 7_000), ("12", 12), ("1_000", 1_000), (5, 5), ("2 ", 2), (1e7, 10_000_000)],
)
def test_parse_count(text: str | float, expected: int):
    assert parse_count(text) == expected


def test_parse_count_says_how_to_write_it():
    with pytest.raises(RequestError) as caught:
        parse_count("big")
    assert str(caught.value) == "'big' is not a parameter count. Write it like 135000000, 135M or 1.5B."


def test_a_clash_keeps_the_first_and_names_both(site: Path):
    install(site, "aaa_clash", registry=MODEL.format(name="tiny-code", params=1) + MODEL.format(name="own", params=2))
    assert zoo.info("tiny-code").plugin == "zoo_slm"
    assert zoo.info("aaa_clash:tiny-code").params == 1
    assert zoo.info("zoo_slm:tiny-code") == zoo.info("zoo:tiny-code") == zoo.info("tiny-code")
    assert zoo.info("own").params == 2


def test_a_model_of_a_plugin_left_out_says_so(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZOO_PLUGINS", "")
    assert zoo.models() == []
    with pytest.raises(UnknownName) as caught:
        zoo.info("tiny-code")
    assert str(caught.value) == "Model 'tiny-code' comes with plugin zoo_slm, which ZOO_PLUGINS leaves out."


GOOD = MODEL.format(name="m", params=1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + 'licence = "MIT"\n',
         "registry.toml, [[model]] 1 (m): 'licence' is not a key. Did you mean 'license'? Keys: name, family, "
         "modality, task, params, license, summary, plugin, hub, revision, sha256, paper, config, dtype, packaged."),
        (GOOD.replace("params = 1", ""),
         "registry.toml, [[model]] 1 (m): 'params' is missing. Needed keys: name, family, modality, task, params, "
         "license, summary."),
        (GOOD.replace("params = 1", 'params = "1"'),
         "registry.toml, [[model]] 1 (m): params must be a whole number that is not negative, not '1'."),
        (GOOD.replace("params = 1", "params = true"),
         "registry.toml, [[model]] 1 (m): params must be a whole number that is not negative, not True."),
        (GOOD.replace('name = "m"', 'name = "a b"'),
         "registry.toml, [[model]] 1: name must be letters, digits, '.', '_' and '-', beginning with a letter or "
         "digit, not 'a b'."),
        (GOOD + 'packaged = "../elsewhere"\n',
         "registry.toml, [[model]] 1 (m): packaged must be a relative folder inside the plugin's package, "
         "not '../elsewhere'."),
        (GOOD + 'dtype = "fp8"\n',
         "registry.toml, [[model]] 1 (m): dtype must be one of float64, float32, bfloat16, float16, not 'fp8'."),
        (GOOD + GOOD, "registry.toml, [[model]] 2 (m): [[model]] 1 has the same name 'm'; a name occurs once."),
        (GOOD.replace("[[model]]", "[[modle]]"),
         "registry.toml: 'modle' is not a table. Did you mean 'model'? Tables: model, family, compressor, loss, "
         "evaluator, data, command."),
        ("[model]\nname = 'm'\n", "registry.toml: 'model' must be written as [[model]], one for each model."),
        ("[[compressor]]\nname = 'c'\n",
         "registry.toml, [[compressor]] 1 (c): 'summary' is missing. Needed keys: name, summary."),
        ("[[compressor]]\nname = 'c'\nsummary = 's'\nneeds = 'torchao'\n",
         "registry.toml, [[compressor]] 1 (c): needs must be a list of texts, such as [\"torchao\"], not 'torchao'."),
        ("[[family]]\nname = 'f'\nsummary = 's'\n",
         "registry.toml, [[family]] 1 (f): 'modality' is missing. Needed keys: name, summary, modality."),
        ("[[model]\n",
         "registry.toml is not valid TOML: Expected ']]' at the end of an array declaration (at line 1, column 8)."),
    ],
)  # fmt: skip
def test_a_wrong_registry_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    assert fault_of(tmp_path, text) == sentence


def test_a_wrong_hash_is_refused(tmp_path: Path):
    assert "sha256 must be a table of file names" in fault_of(tmp_path, GOOD + "[model.sha256]\n'a.bin' = 'abc'\n")


def test_a_config_holds_only_what_json_can(tmp_path: Path):
    assert "config must be a table of values that JSON can hold" in fault_of(
        tmp_path, GOOD + "[model.config]\nx = nan\n"
    )
    assert "config must be a table of values that JSON can hold" in fault_of(
        tmp_path, GOOD + "[model.config]\nx = 2020-01-01\n"
    )


def test_every_key_of_a_spec_can_be_written(tmp_path: Path):
    file = tmp_path / "registry.toml"
    file.write_text(
        GOOD
        + 'plugin = "p"\nhub = "org/m"\nrevision = "abc"\npaper = "arXiv:1"\ndtype = "bfloat16"\npackaged = "w/m"\n'
        f'[model.sha256]\n"model.safetensors" = "{"0" * 64}"\n[model.config]\nhidden_size = 3\n'
    )
    (spec,) = read(file, plugin="other").models
    assert all(value for value in spec.to_json().values())
    assert spec.plugin == "p" and spec.sha256 == {"model.safetensors": "0" * 64} and spec.config == {"hidden_size": 3}


def test_all_packaged_weights_together_stay_small() -> None:
    folders = [folder for spec in zoo.models() if (folder := weights.packaged_at(spec))]
    assert len(folders) == 3
    sizes = [file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors")]
    assert sum(sizes) < 20_000_000
