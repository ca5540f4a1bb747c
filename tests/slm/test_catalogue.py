"""The language models of the catalogue: what it says of each holds for what is built, with nothing allocated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from torch import nn
from zoo_slm import models

import zoo
from zoo.catalog import ModelSpec
from zoo.errors import RequestError

SPECS = {spec.name: spec for spec in zoo.models() if spec.plugin == "zoo_slm" and not spec.packaged}
SHAPELESS = {"slimlm-270m", "slimlm-350m", "slimlm-450m", "slimlm-760m", "slimlm-1b", "tele-flm-102b"}
# Of a config class's fields, these are read under the names that published configs have.
OLDER = {"rope_theta", "rope_scaling", "partial_rotary_factor", "decoder_start_token_id"}


def is_written(spec: ModelSpec) -> bool:
    """Whether the architecture is in transformers, or its file is in zoo_slm.models."""
    own = models.own_type(spec.config)
    return not own or find_spec(f"zoo_slm.models.{models.OWN[own][0]}") is not None


BUILT = [name for name, spec in SPECS.items() if spec.config and is_written(spec)]


def test_all_language_models_are_there() -> None:
    assert len(SPECS) == 75
    assert {name for name, spec in SPECS.items() if not spec.config} == SHAPELESS
    assert all(spec.params and spec.params_non_embedding for name, spec in SPECS.items() if name not in SHAPELESS)


@pytest.mark.parametrize("name", BUILT)
def test_the_counts_are_those_of_the_model_built_from_the_config(name: str) -> None:
    module, spec = zoo.load(name, device="meta").module, SPECS[name]
    assert sum(parameter.numel() for parameter in module.parameters()) == spec.params
    assert without_embeddings(module) == spec.params_non_embedding
    assert all(tensor.is_meta for tensor in module.parameters())


def without_embeddings(module: Any) -> int:
    """Count what is neither a table outside the blocks nor a head of its own; of a byte-level model, the blocks alone."""
    if getattr(module.config, "byte_context_window", 0):
        return sum(parameter.numel() for parameter in module.model.layers.parameters())
    lists = tuple(f"{path}." for path, part in module.named_modules() if isinstance(part, nn.ModuleList))
    tables = {
        id(part.weight): part.weight.numel()
        for path, part in module.named_modules()
        if isinstance(part, nn.Embedding) and not path.startswith(lists)
    }
    head = module.get_output_embeddings()
    own = 0 if id(head.weight) in tables else sum(parameter.numel() for parameter in head.parameters())
    return sum(parameter.numel() for parameter in module.parameters()) - sum(tables.values()) - own


@pytest.mark.parametrize(
    ("name", "params", "non_embedding"),
    [
        ("smollm2-135m", 134_515_008, 106_203_456),
        ("mobillama-0.5b", 534_865_920, 403_793_920),
        ("phonelm-0.5b", 509_658_112, 459_326_464),
        ("minicpm-2b", 2_724_880_896, 2_442_057_984),
        ("minicpm-moe-8x2b", 13_873_291_776, 13_590_468_864),
        ("gemma-2-27b", 27_227_128_320, 26_047_480_320),
        ("phi-3-mini-4k-instruct", 3_821_079_552, 3_624_078_336),
        ("phi-3-small-8k-instruct", 7_392_272_384, 6_981_230_592),
        ("flan-t5-small", 76_961_152, 44_062_080),
        ("bebeshka", 16_424_920, 11_765_160),
        ("slimlm-125m", 125_311_488, 85_056_000),
        ("stlm-byte-level", 55_924_736, 50_150_400),
        ("tele-flm-1t", 1_083_813_908_480, 1_080_458_465_280),
        ("zlata", 66_355_200, 42_528_768),
    ],
)
def test_the_counts_are_the_published_ones(name: str, params: int, non_embedding: int) -> None:
    assert (SPECS[name].params, SPECS[name].params_non_embedding) == (params, non_embedding)


@pytest.mark.parametrize("name", BUILT)
def test_a_config_says_only_what_its_class_reads(name: str) -> None:
    kind = type(zoo.load(name, device="meta").module.config)
    assert SPECS[name].config.keys() - set(kind().to_dict()) - set(kind.attribute_map) <= OLDER


def test_every_model_says_where_it_is_from() -> None:
    for spec in SPECS.values():
        assert re.fullmatch(r"unknown|Apache-2\.0|MIT|LicenseRef-[A-Za-z0-9.-]+", spec.license), spec.name
        assert re.fullmatch(r"|https://arxiv\.org/abs/\d{4}\.\d{5}", spec.paper), spec.name
        assert spec.hub == "" or spec.hub.count("/") == 1
        assert re.fullmatch(r"|[0-9a-f]{40}", spec.revision) and (spec.hub or not spec.revision)
        assert spec.task in ("causal-lm", "masked-lm", "seq2seq") and spec.modality == "text"
        assert 10 < len(spec.summary) <= 130 and not spec.summary.endswith(".")
        assert ("licence" in spec.unknown) == (spec.license == "unknown")
        assert (spec.family == "llama") == (spec.config.get("model_type") == "llama")


@pytest.mark.parametrize("name", sorted(SHAPELESS))
def test_a_model_whose_shape_is_not_known_is_refused_and_says_what_is_missing(name: str) -> None:
    for options in ({"device": "meta"}, {"weights": "random"}, {}):
        with pytest.raises(RequestError) as caught:
            zoo.load(name, **options)
        assert str(caught.value).startswith(f"{name} cannot be built, for this is not known of it: ")
        assert SPECS[name].unknown in str(caught.value)
        assert re.search("width", str(caught.value))


def test_a_null_of_a_config_is_no_default() -> None:
    """Mistral's class has a window unless it is told otherwise; TOML cannot write null, so the catalogue has a word for it."""
    assert SPECS["h2o-danube2-1.8b"].config["sliding_window"] is None
    assert zoo.load("h2o-danube2-1.8b", device="meta").module.config.sliding_window is None
    assert zoo.load("orca-math-7b", device="meta").module.config.sliding_window == 4096


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("smollm2-1.7b", "rope_theta", 130000.0),
        ("starcoder2-3b", "rope_theta", 999999.4420358813),
        ("gemma-2-2b", "rope_theta", 10000.0),
        ("phi-2", "partial_rotary_factor", 0.4),
        ("selene-1-mini-8b", "factor", 8.0),
        ("minicpm-2b-128k", "rope_type", "dynamic"),
    ],
)
def test_rotary_settings_reach_the_config(name: str, key: str, value: Any) -> None:
    if name in BUILT:
        assert zoo.load(name, device="meta").module.config.rope_parameters[key] == value


def test_a_flan_t5_has_a_head_of_its_own_and_loads_with_plain_transformers(tmp_path: Any) -> None:
    """transformers ties it whatever the config says, unless a checkpoint has both tensors and they differ."""
    import torch
    import transformers

    values = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = {**SPECS["flan-t5-small"].config, **values, "num_decoder_layers": 2}
    spec = ModelSpec("tiny-flan", "transformers", "text", "seq2seq", plugin="zoo_slm", config=config)
    from zoo.model.model import build_random
    from zoo.registry import family_of

    model = build_random(family_of(spec), spec)
    head, table = model.module.lm_head.weight, model.module.shared.weight
    assert head is not table and not torch.equal(head, table) and 0.9 < float(head.detach().std()) < 1.1
    assert model.module.encoder.embed_tokens.weight is table and model.module.decoder.embed_tokens.weight is table
    place = model.save(tmp_path / "saved")
    assert "Plain transformers loads this folder too." in (place / "README.md").read_text()
    ids = model.family.example(model)
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(place).eval()
    reloaded = zoo.load(place)
    # says tie_word_embeddings = true, and means it no more than T5's class does
    plain.save_pretrained(tmp_path / "plain")
    again = zoo.load(tmp_path / "plain")
    with torch.no_grad():
        expected = model.module(**ids).logits
        for other in (reloaded.module, plain, again.module):
            assert torch.equal(other(**ids).logits, expected)
    assert again.params == model.params == zoo.load(tmp_path / "plain", device="meta").params
    assert zoo.load(again.save(tmp_path / "again")).params == model.params


# --- zoo list, zoo info -----------------------------------------------------------------------------------------------


def test_list_filters_by_size_and_licence() -> None:
    found = json.loads(said("list", "--modality", "text", "--max-params", "1.5B", "--license", "apache-2.0", "--json"))
    names = {model["name"] for model in found}
    assert {"tiny-code", "smollm2-135m", "minicpm-1b", "h2o-danube3-500m", "flan-t5-large"} <= names
    assert not names & ({"smollm2-1.7b", "gpt2-medium", "gemma-2b", "tiny-vlm"} | SHAPELESS)
    assert all(
        0 < model["params"] <= 1.5e9 and model["license"] == "Apache-2.0" and model["modality"] == "text"
        for model in found
    )


@pytest.mark.parametrize(("width", "columns"), [(80, "name params summary"), (120, "name params license summary")])
def test_a_terminal_shows_a_model_a_line(
    width: int, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from zoo.cli.models import list_models

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    list_models(modality="text")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    assert lines[0].split() == columns.split() and len(lines) == 2 + len(zoo.models(modality="text"))
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "smollm2-135m",
            [
                "params    134,515,008 (106,203,456 without embeddings)",
                "KV cache  23 kB per token in bfloat16, 189 MB at 8192 tokens",
                "weights   hub: HuggingFaceTB/SmolLM2-135M",
                "memory    fp32 538 MB, bf16 269 MB, int8 135 MB, 4-bit 67.3 MB",
                "shape     layers 30, width 576, heads 9, kv_heads 3, head_dim 64, ffn 1536, vocabulary 49152, context 8192",
            ],
        ),
        (
            "gemma-2-2b",
            [
                "KV cache  106 kB per token in bfloat16 (53.2 kB of it only for the last 4096 tokens), 654 MB at 8192 tokens"
            ],
        ),
        (
            "phi-3-mini-4k-instruct",
            ["KV cache  393 kB per token in bfloat16 (all of it only for the last 2047 tokens), 805 MB at 4096 tokens"],
        ),
        # its window is longer than that
        ("phi-3-mini-128k-instruct", ["KV cache  393 kB per token in bfloat16, 51.5 GB at 131072 tokens"]),
        # all heads, whatever the published config says
        ("mobillama-0.5b", ["KV cache  180 kB per token in bfloat16, 369 MB at 2048 tokens"]),
        ("flan-t5-small", ["KV cache  12.3 kB per token in bfloat16, and 12.3 kB per token read"]),
        (
            "minicpm-moe-8x2b",
            [
                "shape     layers 40, width 2304, heads 36, kv_heads 36, head_dim 64, ffn 5760, experts 8, active_experts 2, "
                "vocabulary 122753, context 4096"
            ],
        ),
        (
            "gpt2-large",
            [
                "shape     layers 36, width 1280, heads 20, kv_heads 20, head_dim 64, ffn 5120, vocabulary 50257, context 1024"
            ],
        ),
        ("slimlm-270m", ["params    unknown", "weights   none published"]),
    ],
)
def test_info_says_shape_memory_and_cache(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.cli.info import info

    info(name)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in printed] == []
    unknown = [line for line in printed if line.startswith("unknown ")]
    assert unknown == ([f"unknown   {SPECS[name].unknown}"] if SPECS[name].unknown else [])


def test_a_masked_model_keeps_no_cache() -> None:
    facts = json.loads(said("info", "bebeshka", "--json"))
    assert (
        facts["kv_cache_bytes_per_token"] is None
        and facts["shape"]["head_dim"] == 70
        and facts["unknown"] == "the licence"
    )


def said(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "zoo", *arguments], capture_output=True, text=True, check=True)
    return done.stdout
