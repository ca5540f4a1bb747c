"""PhoneLM: the gate that is a ReLU, and rotary tables of int8 precision that depend on the call."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor
from zoo_slm.models.phonelm import PhoneLMConfig, PhoneLMForCausalLM

import zoo

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
# What the catalogue says of the published sizes: width, FFN width, layers, head width, parameters.
PUBLISHED = {"0.5B": (1024, 4864, 24, 64, 509_658_112), "1.5B": (2560, 6816, 19, 160, 1_618_593_280)}


@pytest.fixture(scope="module")
def model() -> Any:
    return checks.tiny(PhoneLMForCausalLM, PhoneLMConfig(**SHAPE))


@pytest.fixture(scope="module")
def unrounded() -> Any:
    return checks.tiny(PhoneLMForCausalLM, PhoneLMConfig(**SHAPE, rope_int8=False))


# --- the reference ----------------------------------------------------------------------------------------------------


def reference(model: Any, ids: Tensor, pieces: tuple[int, ...]) -> Tensor:
    """The formulas of the facts, position by position, where the tables of every piece of the text are made by themselves."""
    config, tensors = model.config, model.state_dict()
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    tables = [
        table
        for start, stop in _spans(pieces)
        for table in _tables(list(range(start, stop)), size, rounded=config.rope_int8)
    ]
    rows = []
    for row in ids:
        h = [tensors["model.embed_tokens.weight"][token] for token in row]
        for layer in range(config.num_hidden_layers):
            part = f"model.layers.{layer}."
            x = [_norm(v, tensors[part + "input_layernorm.weight"]) for v in h]
            q, k, v = ([tensors[f"{part}self_attn.{name}_proj.weight"] @ one for one in x] for name in "qkv")
            for i in range(len(h)):
                mixed = []
                for head in range(heads):
                    own = slice(head * size, (head + 1) * size)
                    query = _rotated(q[i][own], *tables[i])
                    scores = torch.stack([query @ _rotated(k[j][own], *tables[j]) for j in range(i + 1)]) / math.sqrt(
                        size
                    )
                    mixed.append(sum(p * v[j][own] for j, p in enumerate(scores.softmax(0))))
                h[i] = h[i] + tensors[part + "self_attn.o_proj.weight"] @ torch.cat(mixed)
            for i, one in enumerate(h):
                x_i = _norm(one, tensors[part + "post_attention_layernorm.weight"])
                gate, up = (tensors[f"{part}mlp.{name}_proj.weight"] @ x_i for name in ("gate", "up"))
                h[i] = one + tensors[part + "mlp.down_proj.weight"] @ (torch.where(gate > 0, gate, 0) * up)
        rows.append(
            torch.stack([tensors["model.embed_tokens.weight"] @ _norm(v, tensors["model.norm.weight"]) for v in h])
        )
    return torch.stack(rows)


def _spans(pieces: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(sum(pieces[:i]), sum(pieces[: i + 1])) for i in range(len(pieces))]


def _tables(positions: list[int], size: int, *, rounded: bool) -> list[tuple[list[float], list[float]]]:
    """(cos, sin) of every position of one call, each `size` long."""
    angles = [[m * 10_000 ** (-2 * (i % (size // 2)) / size) for i in range(size)] for m in positions]
    kinds = []
    for function in (math.cos, math.sin):
        table = [[function(angle) for angle in row] for row in angles]
        most = max(abs(entry) for row in table for entry in row)
        if rounded and most:
            table = [[round(entry / most * 127) / 127 * most for entry in row] for row in table]
        kinds.append(table)
    return list(zip(*kinds, strict=True))


def _rotated(x: Tensor, cos: list[float], sin: list[float]) -> Tensor:
    """Entry i is paired with entry i + size / 2."""
    half = len(x) // 2
    return torch.stack([x[i] * cos[i] + (-x[i + half] if i < half else x[i - half]) * sin[i] for i in range(len(x))])


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * gain


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounded", [True, False])
def test_logits_are_those_of_the_formulas(model: Any, unrounded: Any, rounded: bool) -> None:
    asked = model if rounded else unrounded
    ids = checks.tokens(asked, length=9)
    checks.near(checks.logits(asked, ids), reference(asked, ids, (9,)))


def test_rounding_is_seen_in_the_logits(model: Any, unrounded: Any) -> None:
    ids = checks.tokens(model)
    with pytest.raises(AssertionError, match="differs by"):
        checks.near(checks.logits(model, ids), checks.logits(unrounded, ids))


def test_cached_decoding_is_the_formulas_with_tables_of_every_call(model: Any) -> None:
    ids, pieces, cache, found = checks.tokens(model, batch=1, length=9), (5, 1, 1, 2), None, []
    for start, stop in _spans(pieces):
        with torch.no_grad():
            output = model(input_ids=ids[:, start:stop], cache=cache, use_cache=True)
        cache = output.cache
        found.append(output.logits)
    checks.near(torch.cat(found, dim=1), reference(model, ids, pieces))


def test_cached_decoding_is_near_a_whole_pass(model: Any) -> None:
    checks.cached_equals_full(model, tolerance=0.02)  # steps of 1/127 in the tables: half of one is 0.4 %


def test_without_rounding_cached_decoding_equals_a_whole_pass(unrounded: Any) -> None:
    checks.cached_equals_full(unrounded)
    checks.generates_greedily(unrounded)


def test_one_token_alone_is_finite(model: Any) -> None:
    """At position 0 every sine is 0, and so is the largest."""
    assert checks.logits(model, checks.tokens(model, length=1)).isfinite().all()


def test_a_padded_row_is_as_alone(model: Any) -> None:
    checks.padded_equals_alone(model)


def test_attention_implementations_agree(model: Any) -> None:
    checks.eager_equals_sdpa(model)


def test_gradients_reach_every_parameter(model: Any) -> None:
    checks.gradients_reach_all(model)


def test_checkpointing_keeps_the_gradients(model: Any) -> None:
    checks.checkpointing_keeps_gradients(model)


def test_bfloat16_is_near(model: Any) -> None:
    checks.bf16_is_near(model)


def test_saved_and_loaded_is_the_same(model: Any, tmp_path: Path) -> None:
    checks.roundtrip(model, tmp_path / "saved")


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_at_full_shape(size: str) -> None:
    config = published(size)
    assert checks.params(config) == PUBLISHED[size][-1]


def test_defaults_are_the_smallest_published() -> None:
    ours, told = PhoneLMConfig(), PhoneLMConfig(**{k: v for k, v in published("0.5B").items() if k != "model_type"})
    unread = ("mlp", "norm", "architectures")
    assert {k: v for k, v in told.to_dict().items() if k not in unread} == {
        k: v for k, v in ours.to_dict().items() if k not in unread
    }


def test_a_published_checkpoint_loads(model: Any, tmp_path: Path) -> None:
    """With the names of the hub, the tied head left out."""
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert sorted(name for name in tensors if ".1." in name) == sorted(
        f"model.layers.1.{name}.weight"
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{p}_proj" for p in "qkvo"),
            *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
        )
    )
    config = {**published("0.5B"), **SHAPE, "num_key_value_heads": 4, "head_dim": 8, "torch_dtype": "float32"}
    loaded = zoo.load(checks.write_checkpoint(tmp_path / "hub", config, tensors))
    assert type(loaded.module) is PhoneLMForCausalLM
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    ids = checks.tokens(model)
    checks.near(checks.logits(loaded.module, ids), checks.logits(model, ids))


def published(size: str) -> dict[str, Any]:
    width, ffn, layers, head, _ = PUBLISHED[size]
    return {
        "model_type": "phonelm",
        "architectures": ["PhoneLMForCausalLM"],
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": head,
        "vocab_size": 49152,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "hidden_act": "relu",
        "norm": "rmsnorm",
        "rms_norm_eps": 1e-6,
        "mlp": "gated: down(relu(gate(x)) * up(x))",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_int8": True,
    }
