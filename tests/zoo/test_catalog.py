"""The catalogue: what a registry.toml may say, what is said when it does not fit, and how models are found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from outsiders import MODEL, install

import zoo
from zoo import catalog
from zoo.catalog import ModelSpec, parse_count
from zoo.errors import PluginError, RequestError, UnknownName
from zoo.loading import weights
from zoo.plugins.declarations import read
from zoo.plugins.names import of_kind, refresh

pytestmark = pytest.mark.quick


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path for plugins; it and what was found there are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    monkeypatch.delenv("ZOO_STRICT", raising=False)
    refresh()
    yield tmp_path
    monkeypatch.undo()
    refresh()


def fault_of(tmp_path: Path, text: str) -> str:
    """The sentence `read` refuses a registry.toml with, the path shortened."""
    file = tmp_path / "registry.toml"
    file.write_text(API + text)
    with pytest.raises(PluginError) as caught:
        read(file, plugin="p")
    return str(caught.value).replace(str(file), "registry.toml")


def test_every_builtin_model_has_what_the_catalogue_promises():
    assert "tiny-code" in catalog.catalogue()
    for name, spec in catalog.catalogue().items():
        assert name == spec.name
        assert spec.license and spec.summary and (spec.params > 0 or spec.unknown)
        assert spec.family in of_kind("family")


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
    for name, params in (("small", 1_000), ("large", 2_000_000_000)):
        install(site, f"fam_{name}", registry=MODEL.format(name=name, params=params).replace('"MIT"', '"MIT-0"'))
    names = {spec.name for spec in zoo.models(max_params="1.5B")}
    assert "small" in names and "large" not in names
    assert {spec.name for spec in zoo.models(license="mit-0")} == {"small", "large"}
    assert {"small", "large"} <= {spec.name for spec in zoo.models(modality="text", family="llama")}
    assert zoo.models(modality="smell") == []
    assert {spec.name for spec in zoo.models(license="MIT-0", max_params=1_000)} == {"small"}
    # unknown is not few
    assert {"slimlm-270m", "smollm2-135m"} & {spec.name for spec in zoo.models(max_params="1B")} == {"smollm2-135m"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5B", 1_500_000_000),
        ("135M", 135_000_000),
        ("7k", 7_000),
        ("12", 12),
        ("1_000", 1_000),
        (5, 5),
        ("2 ", 2),
        (1e7, 10_000_000),
    ],
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
API = 'api = ">=1,<2"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            GOOD + 'licence = "MIT"\n',
            "registry.toml, [[model]] 1 (m): 'licence' is not a key. Did you mean 'license'? Keys: name, family, "
            "modality, task, params, license, summary, plugin, hub, revision, sha256, paper, config, dtype, packaged, "
            "distribution, params_non_embedding, unknown, missing.",
        ),
        (
            GOOD.replace("params = 1", ""),
            "registry.toml, [[model]] 1 (m): 'params' is missing. Needed keys: name, family, modality, task, params, "
            "license, summary.",
        ),
        (
            GOOD.replace("params = 1", 'params = "1"'),
            "registry.toml, [[model]] 1 (m): params must be a whole number from 0 to 2**63 - 1, not '1'.",
        ),
        (
            GOOD.replace("params = 1", "params = true"),
            "registry.toml, [[model]] 1 (m): params must be a whole number from 0 to 2**63 - 1, not True.",
        ),
        (
            GOOD.replace('name = "m"', 'name = "a b"'),
            "registry.toml, [[model]] 1: name must be at most 200 letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit, not 'a b'.",
        ),
        (
            GOOD + 'packaged = "../elsewhere"\n',
            "registry.toml, [[model]] 1 (m): packaged must be a relative folder inside the plugin's package, "
            "not '../elsewhere'.",
        ),
        (
            GOOD + 'dtype = "fp8"\n',
            "registry.toml, [[model]] 1 (m): dtype must be one of float64, float32, bfloat16, float16, not 'fp8'.",
        ),
        (GOOD + GOOD, "registry.toml, [[model]] 2 (m): [[model]] 1 has the same name 'm'; a name occurs once."),
        (
            GOOD.replace("[[model]]", "[[modle]]"),
            "registry.toml: 'modle' is not a table. Did you mean 'model'? Tables: model, option, family, compressor, loss, "
            "evaluator, data, command.",
        ),
        ("[model]\nname = 'm'\n", "registry.toml: 'model' must be written as [[model]], one for each model."),
        (
            "[[compressor]]\nname = 'c'\n",
            "registry.toml, [[compressor]] 1 (c): 'summary' is missing. Needed keys: name, summary.",
        ),
        (
            "[[compressor]]\nname = 'c'\nsummary = 's'\nneeds = 'torchao'\n",
            'registry.toml, [[compressor]] 1 (c): needs must be a list of texts, such as ["torchao"], each one line of 1 '
            "to 500 printable characters, not 'torchao'.",
        ),
        (
            "[[family]]\nname = 'f'\nsummary = 's'\n",
            "registry.toml, [[family]] 1 (f): 'modality' is missing. Needed keys: name, summary, modality.",
        ),
        (
            "[[model]\n",
            "registry.toml is not valid TOML: Expected ']]' at the end of an array declaration (at line 2, column 8).",
        ),
    ],
)
def test_a_wrong_registry_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    assert fault_of(tmp_path, text) == sentence


RANGE = 'the range of plugin API versions it is made for, such as ">=1,<2"'
LINE = "one line of 1 to 500 printable characters"
INSIDE = "packaged must be a relative folder inside the plugin's package, not"
MARKS = (
    'recognises must be a list of files, each with a key in it or without, such as ["config.json:architecture"], not'
)
JSON = "config must be a table of values that JSON can hold, not nested deeper than 20, not"
FAMILY = "[[family]]\nname = 'f'\nsummary = 's'\nmodality = 'text'\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "params = 2\n", "registry.toml is not valid TOML: Cannot overwrite a value (at line 11, column 11)."),
        ("a = " + "[" * 5000, "registry.toml is nested too deeply to be read."),
        (
            "a" + ".a" * 5000 + " = 1",
            "registry.toml, line 2: more than 200 dots in one line; write long lists over several lines.",
        ),
        (
            "a = 1" + "0" * 5000,
            "registry.toml is not valid TOML: Exceeds the limit (4300 digits) for integer string conversion: "
            "value has 5001 digits; use sys.set_int_max_str_digits() to increase the limit.",
        ),
        ("[model]\n[[model]]\n", "registry.toml is not valid TOML: Cannot overwrite a value (at line 3, column 8)."),
        (
            '"\\u001b[2J" = 1',
            r"registry.toml: '\x1b[2J' is not a table. Tables: model, option, family, compressor, loss, evaluator, data, command.",
        ),
        (
            GOOD.replace("Made up for a test", r"\u001b[31mred"),
            rf"registry.toml, [[model]] 1 (m): summary must be {LINE}, not '\x1b[31mred'.",
        ),
        (
            GOOD.replace("Made up for a test", r"one\ntwo"),
            rf"registry.toml, [[model]] 1 (m): summary must be {LINE}, not 'one\ntwo'.",
        ),
        (
            GOOD.replace("Made up for a test", "x" * 501),
            f"registry.toml, [[model]] 1 (m): summary must be {LINE}, not '{'x' * 76}....",
        ),
        (
            GOOD.replace('"MIT"', r'"\u202eTIM"'),
            rf"registry.toml, [[model]] 1 (m): license must be {LINE}, not '\u202eTIM'.",
        ),
        (
            GOOD.replace("params = 1", "params = 0x" + "f" * 16),
            "registry.toml, [[model]] 1 (m): params must be a whole number from 0 to "
            "2**63 - 1, not 18446744073709551615.",
        ),
        (
            GOOD.replace('"m"', f'"{"m" * 201}"'),
            "registry.toml, [[model]] 1: name must be at most 200 letters, digits, '.', '_' and '-', "
            f"beginning with a letter or digit, not '{'m' * 76}....",
        ),
        (
            GOOD.replace('"llama"', '"a:b:c"'),
            "registry.toml, [[model]] 1 (m): family must be a name or 'plugin:name': at most 200 letters, "
            "digits, '.', '_' and '-', beginning with a letter or digit, not 'a:b:c'.",
        ),
        *(
            (GOOD + f"packaged = {folder!r}\n", f"registry.toml, [[model]] 1 (m): {INSIDE} {folder!r}.")
            for folder in ("../x", "/etc", "a/../../b", "a//b", "./a", ".", "C:/x", "a*", "..")
        ),
        (
            GOOD + "[model.sha256]\n'a.bin' = 'abc'\n",
            "registry.toml, [[model]] 1 (m): sha256 must be a table of file names, each with a "
            "hash of 64 lower-case hexadecimal digits, not {'a.bin': 'abc'}.",
        ),
        *(
            (
                GOOD + f"[model.sha256]\n'{name}' = '{'0' * 64}'\n",
                "registry.toml, [[model]] 1 (m): sha256 must be a table of file names "
                f"that stay inside the repository, not {{'{name}': '{'0' * 64}'}}.",
            )
            for name in ("../x", "/x")
        ),
        *(
            (GOOD + f"[model.config]\nx = {value}\n", f"registry.toml, [[model]] 1 (m): {JSON} {shown}.")
            for value, shown in (
                ("nan", "{'x': nan}"),
                ("-inf", "{'x': -inf}"),
                ("2020-01-01", "{'x': datetime.date(2020, 1, 1)}"),
                ("9223372036854775808", "{'x': 9223372036854775808}"),
                ("[" * 21 + "]" * 21, "{'x': " + "[" * 21 + "]" * 21 + "}"),
            )
        ),
        *(
            (FAMILY + f"recognises = [{mark!r}]\n", f"registry.toml, [[family]] 1 (f): {MARKS} [{mark!r}].")
            for mark in ("../../etc/passwd:key", "/dev/zero", "*.json", "a.json:", ":key", "conf[ig].json:x")
        ),
        *(
            (
                FAMILY + f"needs = {value}\n",
                f'registry.toml, [[family]] 1 (f): needs must be a list of texts, such as ["torchao"], each {LINE}, '
                f"not {shown}.",
            )
            for value, shown in (("'torch'", "'torch'"), ("[1]", "[1]"), ("['']", "['']"))
        ),
    ],
)
def test_a_hostile_registry_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str):
    assert fault_of(tmp_path, text) == sentence


@pytest.mark.parametrize(
    ("api", "sentence"),
    [
        (
            "",
            "registry.toml: 'api' is missing: write api = \">=1,<2\", the range of plugin API versions it is made for, as its first line.",
        ),
        ("api = 1", f"registry.toml: api must be {RANGE}, not 1."),
        ("api = '~=1'", f"registry.toml: api must be {RANGE}, not '~=1'."),
        ("api = '>=1,'", f"registry.toml: api must be {RANGE}, not '>=1,'."),
        (
            "api = '>=2,<3'",
            "needs plugin API >=2,<3, and this zoo {zoo} has 1: upgrade zoo, or install a version of p-dist made for it.",
        ),
        (
            "api = '>1'",
            "needs plugin API >1, and this zoo {zoo} has 1: upgrade zoo, or install a version of p-dist made for it.",
        ),
        (
            "api = '<1'",
            "needs plugin API <1, and this zoo {zoo} has 1: install a newer version of p-dist, or an older zoo.",
        ),
    ],
)
def test_a_registry_says_which_api_it_is_made_for(tmp_path: Path, api: str, sentence: str):
    file = tmp_path / "registry.toml"
    file.write_text(api + "\n[[gadget]]\nwhat = 'only a later zoo knows it'\n")
    with pytest.raises(PluginError) as caught:
        read(file, plugin="p", distribution="p-dist")
    assert str(caught.value).replace(str(file), "registry.toml") == sentence.format(zoo=zoo.__version__)


@pytest.mark.parametrize("api", [">=1,<2", ">=1, <2", "==1", "<=1", ">0"])
def test_a_range_that_covers_the_api_is_taken(tmp_path: Path, api: str):
    file = tmp_path / "registry.toml"
    file.write_text(f"api = '{api}'\n" + GOOD)
    assert read(file, plugin="p").api == api


def test_what_is_no_small_file_is_not_opened(tmp_path: Path):
    def fault_at(place: Path) -> str:
        with pytest.raises(PluginError) as caught:
            read(place, plugin="p")
        return str(caught.value).removeprefix(str(tmp_path))

    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(50_000_000)
    (tmp_path / "bytes").write_bytes(b"# \xff")
    assert fault_at(tmp_path / "folder") == "/folder is not a file."
    assert fault_at(tmp_path / "pipe") == "/pipe is not a file."
    assert fault_at(tmp_path / "endless") == "/endless is not a file."
    assert fault_at(tmp_path / "loop") == "/loop cannot be read: Too many levels of symbolic links."
    assert fault_at(tmp_path / "huge") == "/huge has 50,000,000 bytes, and 1,048,576 are the most that is read."
    assert fault_at(tmp_path / "bytes") == "/bytes cannot be read: byte 2 is not UTF-8 text."
    assert fault_at(tmp_path / "nothing") == "/nothing cannot be read: No such file or directory."


def test_packaged_weights_that_lead_out_of_the_package_are_refused(site: Path, tmp_path: Path):
    package = install(site, "out_leads", registry=MODEL.format(name="leads", params=1) + 'packaged = "weights"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (package / "weights").symlink_to(elsewhere)
    with pytest.raises(PluginError) as caught:
        zoo.load("leads")
    assert str(caught.value) == (
        f"Plugin out_leads: {package / 'weights'} leads out of its package, to {elsewhere}; nothing was read."
    )
    (package / "weights").unlink()
    (package / "real").mkdir()
    (package / "weights").symlink_to("real")
    assert weights.packaged_at(zoo.info("leads")) == package / "weights"


def test_every_key_of_a_spec_can_be_written(tmp_path: Path):
    file = tmp_path / "registry.toml"
    file.write_text(
        API
        + GOOD
        + 'plugin = "p"\nhub = "org/m"\nrevision = "abc"\npaper = "arXiv:1"\ndtype = "bfloat16"\npackaged = "w/m"\ndistribution = "d"\n'
        'params_non_embedding = 1\nunknown = "the licence"\nmissing = "its tokenizer"\n'
        f'[model.sha256]\n"model.safetensors" = "{"0" * 64}"\n[model.config]\nhidden_size = 3\nsliding_window = "null"\n'
        '[model.config.llm_config]\nsliding_window = "null"\n'
    )
    (spec,) = read(file, plugin="other").models
    assert all(value for value in spec.to_json().values())
    assert (
        spec.plugin == "p"
        and spec.sha256 == {"model.safetensors": "0" * 64}
        and spec.config == {"hidden_size": 3, "sliding_window": None, "llm_config": {"sliding_window": None}}
    )


def test_all_packaged_weights_together_stay_small() -> None:
    ours = [spec for spec in zoo.models() if not spec.distribution]
    folders = [folder for spec in ours if (folder := weights.packaged_at(spec))]
    assert len(folders) == 3
    sizes = [file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors")]
    assert sum(sizes) < 20_000_000
