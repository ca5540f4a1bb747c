"""`zoo.load(name, scale="tiny", weights="random")`: every architecture of the catalogue at test size, its ratios and quirks kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from slm.models import checks
from slm.test_catalogue import BUILT, SPECS
from twins import twin
from zoo_slm import configs
from zoo_slm.language import TransformersText

import zoo
from zoo import registry
from zoo.errors import RequestError
from zoo.model.context import Context
from zoo.model.model import Model

LARGEST = 600_000  # parameters of a twin
WHOLE = {name: configs.parsed(SPECS[name].config) for name in BUILT}
SMALL = {name: configs.parsed(TransformersText().shrunk(SPECS[name])) for name in BUILT}
# One model of each twin: instruction versions, and sizes that differ in nothing else, have the same.
DISTINCT = list(
    {
        json.dumps(
            {key: value for key, value in config.to_dict().items() if not key.endswith("token_id")}, sort_keys=True
        ): name
        for name, config in reversed(SMALL.items())
    }.values()
)[::-1]
# The int8 tables of a step are rounded to the largest entry among the positions of that step (facts, 2.3).
ROUGH = {"phonelm": 0.05}


def load(name: str) -> Model:
    return zoo.load(name, scale="tiny", weights="random")


@pytest.mark.parametrize("name", BUILT)
def test_a_twin_keeps_ratios_and_quirks(name: str) -> None:
    whole, small = WHOLE[name], SMALL[name]
    assert type(small) is type(whole)

    def of(config: Any, *names: str) -> Any:
        return next((found for one in names if (found := getattr(config, one, None))), None)

    for one in (
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "tie_word_embeddings",
        "feed_forward_proj",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "ffn_weight_tying",
        "shared_ffn",
        "scale_emb",
        "scale_depth",
        "rope_int8",
        "gegelu_limit",
        "mup_width_multiplier",
        "num_experts_per_tok",
        "byte_context_window",
        "byte_vocab_size",
        "position_embedding_type",
    ):
        assert getattr(small, one, None) == getattr(whole, one, None), one
    heads, width = (
        [of(c, "num_attention_heads") for c in (whole, small)],
        [of(c, "hidden_size") for c in (whole, small)],
    )
    kv = [getattr(c, "num_key_value_heads", None) or n for c, n in zip((whole, small), heads, strict=True)]
    head = [of(c, "head_dim", "d_kv") or w // n for c, w, n in zip((whole, small), width, heads, strict=True)]
    inner = [of(c, "intermediate_size", "d_ff", "n_inner") or 4 * w for c, w in zip((whole, small), width, strict=True)]
    assert heads[0] * kv[1] == heads[1] * kv[0] and min(kv[0], 2) <= kv[1]
    assert (heads[0] * head[0] == width[0]) == (heads[1] * head[1] == width[1])
    assert width[1] / heads[1] / head[1] == pytest.approx(width[0] / heads[0] / head[0], rel=0.1)
    assert inner[1] / width[1] == pytest.approx(inner[0] / width[0], rel=0.06)
    assert of(small, "vocab_size") == 512 and (of(small, "num_hidden_layers") or 4) >= 2
    kinds = Counter(getattr(small, "layer_types", None) or [])
    assert set(kinds) == set(getattr(whole, "layer_types", None) or []) and all(count >= 2 for count in kinds.values())
    window, context = of(whole, "sliding_window"), of(whole, "max_position_embeddings")
    if window:
        assert (small.sliding_window < small.max_position_embeddings) == (window < context)
    for key in ("rope_type", "rope_theta", "partial_rotary_factor", "factor"):
        assert (getattr(small, "rope_parameters", None) or {}).get(key) == (
            getattr(whole, "rope_parameters", None) or {}
        ).get(key)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        assert (getattr(small, key, None) is None) == (getattr(whole, key, None) is None) and (
            getattr(small, key, None) or 0
        ) < 512
    if base := getattr(whole, "dim_model_base", None):
        assert width[1] / small.dim_model_base == pytest.approx(width[0] / base)
    if scalar := getattr(whole, "query_pre_attn_scalar", None):
        assert (small.query_pre_attn_scalar == head[1]) == (scalar == head[0])


@pytest.mark.parametrize("name", DISTINCT)
def test_a_twin_runs_caches_and_reloads(name: str, tmp_path: Path) -> None:
    model = load(name)
    module: Any = model.module
    assert model.spec.name == f"{name}-tiny" and model.params == model.spec.params < LARGEST and model.processor is None
    assert not (model.spec.hub or model.spec.packaged or model.spec.revision)
    ids = checks.tokens(module, length=24)
    inputs = {"decoder_input_ids": ids[:, :9]} if model.spec.task == "seq2seq" else {}
    expected = checks.logits(module, ids, **inputs)
    assert expected.isfinite().all() and float(expected.std()) > 1e-4
    if model.spec.task == "causal-lm":
        checks.cached_equals_full(module, length=24, tolerance=ROUGH.get(model.spec.config["model_type"], 1e-4))
    elif model.spec.task == "seq2seq":
        decodes_by_steps(module, ids, expected)
    loaded = zoo.load(model.save(tmp_path / "twin"))
    assert torch.equal(checks.logits(loaded.module, ids, **inputs), expected)
    assert loaded.params == model.params and loaded.aliases() == model.aliases()


def decodes_by_steps(module: Any, ids: torch.Tensor, expected: torch.Tensor) -> None:
    """A decoder that goes on from its cache gives what one pass gives."""
    cache, found = None, []
    with torch.no_grad():
        read = module.get_encoder()(input_ids=ids)
        for place in range(expected.shape[1]):
            out = module(encoder_outputs=read, decoder_input_ids=ids[:, place : place + 1], cache=cache, use_cache=True)
            cache, found = out.cache, [*found, out.logits]
    checks.near(torch.cat(found, dim=1), expected, 1e-4)


@pytest.mark.parametrize("name", DISTINCT)
def test_the_parts_of_a_twin_are_found(name: str) -> None:
    model = zoo.load(name, scale="tiny", device="meta")
    config, anatomy = SMALL[name], model.anatomy
    assert (
        anatomy.embedding
        and anatomy.head
        and anatomy.tied == model.spec.config.get("tie_word_embeddings", config.tie_word_embeddings)
    )
    stack = anatomy.stack("language")
    assert len(stack.blocks) == config.num_hidden_layers
    for block in stack.blocks:
        assert block.attention and block.attention.heads == config.num_attention_heads
        assert block.attention.kv_heads == (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        assert block.ffn and block.ffn.experts == getattr(config, "num_experts", 0)
        assert block.ffn.width == (
            getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * config.hidden_size
        )


def test_a_twin_is_the_same_every_time() -> None:
    first, second = (load("smollm2-135m").module.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_any_checkpoint_directory_has_a_twin(tmp_path: Path) -> None:
    for name in ("qwen3", "mixtral", "opt", "bert"):
        twin(name, num_hidden_layers=6).save_pretrained(tmp_path / name)  # type: ignore[operator]
        model = zoo.load(tmp_path / name, scale="tiny", weights="random")
        assert type(model.module).__name__ == type(twin(name, device="meta")).__name__
        assert len(model.anatomy.stack("language").blocks) == 4
        assert model.family.forward(model, model.family.example(model)).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "head", "sizes"),
    [
        ("DistilBert", "ForMaskedLM", {"dim": 32, "hidden_dim": 128, "n_heads": 4, "n_layers": 4}),
        ("XGLM", "ForCausalLM", {"d_model": 32, "ffn_dim": 128, "attention_heads": 4, "num_layers": 4}),
        ("Albert", "ForMaskedLM", {"hidden_size": 32, "embedding_size": 2, "num_hidden_layers": 4}),
        ("ProphetNet", "ForConditionalGeneration", {"num_encoder_attention_heads": 4, "num_decoder_layers": 4}),
    ],
)
def test_a_twin_is_small_in_sizes_of_any_name(tmp_path: Path, kind: str, head: str, sizes: dict[str, int]) -> None:
    values = {**getattr(transformers, f"{kind}Config")().to_dict(), "architectures": [f"{kind}{head}"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = zoo.load(tmp_path, scale="tiny", weights="random")
    assert {name: model.module.config.to_dict()[name] for name in sizes} == sizes  # type: ignore[union-attr, operator]
    assert model.family.forward(model, model.family.example(model)).isfinite().all()


def test_what_has_no_twin_says_so(tmp_path: Path) -> None:
    def fault(*args: Any, **options: Any) -> str:
        with pytest.raises(RequestError) as caught:
            zoo.load(*args, **options)
        return str(caught.value)

    assert (
        fault("smollm2-135m", scale="tiny")
        == "scale='tiny' makes a model that nobody has trained: add weights='random'."
    )
    assert (
        fault("smollm2-135m", scale="tinny", weights="random")
        == "'tinny' is no scale. Did you mean 'tiny'? Scales: tiny."
    )
    assert fault("timm:resnet10t", scale="tiny", weights="random") == (
        "timm:resnet10t cannot be shrunk: its family timm does not say how."
    )
    assert fault("slimlm-450m", scale="tiny", weights="random").startswith(
        "slimlm-450m cannot be built, for this is not known of it: the width"
    )
    model = load("smollm2-135m")
    compressor = registry.compressor("prune.structured")
    model.apply(compressor, compressor.Options(ffn=0.5), Context())
    place = model.save(tmp_path / "pruned")
    assert fault(place, scale="tiny", weights="random") == (
        f"{place} was changed by 1 stages, and a twin has the shape of an original; take the twin of that."
    )


def test_a_tokenizer_of_no_class_of_its_own_comes_back_as_it_was(tmp_path: Path):
    """Of what is saved beside a Qwen2, transformers makes a Qwen2Tokenizer, which splits text otherwise."""
    from stages import tokenizer

    model = zoo.load("qwen2.5-0.5b", scale="tiny", weights="random")
    model.processor = tokenizer()
    again = zoo.load(model.save(tmp_path / "saved"))
    assert again.processor("w5 w6")["input_ids"] == model.processor("w5 w6")["input_ids"] == [5, 6]
    assert again.processor.eos_token == model.processor.eos_token
