"""Super Tiny LMs against a literal reading of the facts, and what every architecture of ours must hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor, nn
from zoo_slm.models.super_tiny import END, PAD, SuperTinyConfig, SuperTinyForCausalLM, reconstruction_loss

import zoo
from zoo.tensors import safetensors

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
BYTES = {
    "tie_word_embeddings": False,
    "byte_context_window": 5,
    "byte_embedding_dim": 16,
    "byte_heads": 4,
    "embedder_blocks": 3,
    "decoder_blocks": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {"ffn_type": "swiglu"},
    "ffn-sharing": {"ffn_type": "swiglu", "ffn_weight_tying": True},
    "100m": {"ffn_type": "gelu", "ffn_weight_tying": True, "bias": True},
    "byte-level": {"ffn_type": "swiglu", **BYTES},
    "byte-level-ffn-sharing": {"ffn_type": "swiglu", "ffn_weight_tying": True, **BYTES},
}


def made(kind: str, **changes: Any) -> Any:
    return checks.tiny(SuperTinyForCausalLM, SuperTinyConfig(**{**SMALL, **KINDS[kind], **changes}))


# --- the reference ----------------------------------------------------------------------------------------------------


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """One head: pair n, of the neighbours 2n and 2n + 1, turned as a complex number."""
    out = torch.empty_like(x)
    for n in range(len(x) // 2):
        angle = position * theta ** (-2 * n / len(x))
        out[2 * n] = x[2 * n] * math.cos(angle) - x[2 * n + 1] * math.sin(angle)
        out[2 * n + 1] = x[2 * n] * math.sin(angle) + x[2 * n + 1] * math.cos(angle)
    return out


def attended(rows: Tensor, weights: dict[str, Tensor], at: str, *, heads: int, groups: int, causal: bool) -> Tensor:
    """Attention of rows (T, D), by loops; only the causal one turns queries and keys."""
    made = rows @ weights[f"{at}.qkv_proj.weight"].T + weights.get(f"{at}.qkv_proj.bias", torch.zeros(()))
    size = made.shape[1] // (heads + 2 * groups)
    q, k, v = made.split([heads * size, groups * size, groups * size], dim=1)
    mixed = torch.zeros(len(rows), heads * size, dtype=rows.dtype)
    for head in range(heads):
        mine, its = (slice(n * size, (n + 1) * size) for n in (head, head // (heads // groups)))
        for i in range(len(rows)):
            seen = range(i + 1 if causal else len(rows))
            query = turned(q[i, mine], i, 10000.0) if causal else q[i, mine]
            keys = [turned(k[j, its], j, 10000.0) if causal else k[j, its] for j in seen]
            shares = torch.softmax(torch.stack([query @ key for key in keys]) / math.sqrt(size), 0)
            mixed[i, mine] = sum(share * v[j, its] for share, j in zip(shares, seen, strict=True))
    return mixed @ weights[f"{at}.o_proj.weight"].T + weights.get(f"{at}.o_proj.bias", torch.zeros(()))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def byte_block(x: Tensor, w: dict[str, Tensor], at: str) -> Tensor:
    x = x + attended(norm(x, w[f"{at}.input_layernorm.weight"]), w, f"{at}.self_attn", heads=4, groups=4, causal=False)
    inner = norm(x, w[f"{at}.post_attention_layernorm.weight"]) @ w[f"{at}.fc1.weight"].T
    return gelu(inner) @ w[f"{at}.fc2.weight"].T  # nothing is added


def byte_vector(w: dict[str, Tensor], slots: Tensor) -> Tensor:
    """The vector (D,) of the bytes (S,) of one token."""
    at = "model.embed_tokens"
    x = torch.stack(
        [w[f"{at}.bytes.weight"][byte] + w[f"{at}.slots.weight"][i] for i, byte in enumerate(slots.tolist())]
    )
    for block in range(3):
        x = byte_block(x, w, f"{at}.blocks.{block}")
    return x.sum(0) / len(slots)


def byte_logits(w: dict[str, Tensor], vector: Tensor) -> Tensor:
    """The logits (S, 258) that follow from one vector (D,)."""
    at = "model.byte_decoder"
    x = (w[f"{at}.spread.weight"] @ vector).view(5, 16)
    x = 2 * x + w[f"{at}.slots.weight"]
    for block in range(2):
        x = byte_block(x, w, f"{at}.blocks.{block}")
    return x @ w["lm_head.weight"].T


def core(w: dict[str, Tensor], x: Tensor, config: SuperTinyConfig) -> Tensor:
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        ffn = "model.layers.0.mlp" if config.ffn_weight_tying else f"{at}.mlp"
        nothing = torch.zeros(())
        x = x + attended(
            norm(x, w[f"{at}.input_layernorm.weight"]), w, f"{at}.self_attn", heads=4, groups=2, causal=True
        )
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        up = y @ w[f"{ffn}.up_proj.weight"].T + w.get(f"{ffn}.up_proj.bias", nothing)
        if config.ffn_type == "swiglu":
            gate = y @ w[f"{ffn}.gate_proj.weight"].T
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = gelu(up)
        x = x + inner @ w[f"{ffn}.down_proj.weight"].T + w.get(f"{ffn}.down_proj.bias", nothing)
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_literal_reference(kind: str) -> None:
    model = made(kind)
    w = {name: tensor.detach() for name, tensor in model.named_parameters()}
    ids = checks.tokens(model, batch=1, length=6)
    if model.config.byte_context_window:
        x = core(w, torch.stack([byte_vector(w, slots) for slots in ids[0]]), model.config)
        expected = torch.stack([byte_logits(w, vector) for vector in x])
    else:
        x = core(w, w["model.embed_tokens.weight"][ids[0]], model.config)
        expected = norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T
    checks.near(checks.logits(model, ids)[0], expected)


# --- what every architecture of ours must hold ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_what_every_architecture_must(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    tokenwise = not model.config.byte_context_window
    checks.cached_equals_full(model)
    checks.padded_equals_alone(model, causal=tokenwise)
    checks.eager_equals_sdpa(model)
    checks.gradients_reach_all(model)
    checks.checkpointing_keeps_gradients(model)
    checks.bf16_is_near(model)
    checks.roundtrip(model, tmp_path / "saved")
    if tokenwise:
        checks.generates_greedily(model)


# models.toml, in the words of the repository's own configs
FACTS: dict[str, tuple[int, dict[str, Any]]] = {
    "stlm-50m-baseline": (47_203_328, {"hidden_dim": 512, "ffn_dim": 1320, "num_layers": 8, "head_dim": 32}),
    "stlm-ffn-sharing": (
        34_655_232,
        {"hidden_dim": 512, "ffn_dim": 1536, "num_layers": 10, "head_dim": 32, "ffn_weight_tying": True},
    ),
    "stlm-byte-level": (
        55_924_736,
        {"hidden_dim": 768, "ffn_dim": 1536, "num_layers": 10, "head_dim": 48, "byte_context_window": 12},
    ),
    "stlm-byte-level-ffn-sharing": (
        17_980_416,
        {
            "hidden_dim": 512,
            "ffn_dim": 1536,
            "num_layers": 16,
            "head_dim": 32,
            "ffn_weight_tying": True,
            "byte_context_window": 12,
        },
    ),
    "stlm-10m": (
        9_650_304,
        {
            "hidden_dim": 384,
            "ffn_dim": 1536,
            "ffn_type": "generic (GELU)",
            "num_layers": 5,
            "num_heads": 8,
            "head_dim": 48,
            "vocab_size": 4000,
        },
    ),
    "stlm-50m": (
        15_112_192,
        {
            "hidden_dim": 512,
            "ffn_dim": 2048,
            "ffn_type": "generic (GELU)",
            "num_layers": 12,
            "head_dim": 32,
            "vocab_size": 10000,
            "bias": True,
            "ffn_weight_tying": True,
        },
    ),
    "stlm-100m": (
        99_778_048,
        {
            "hidden_dim": 1024,
            "ffn_dim": 4096,
            "ffn_type": "generic (GELU)",
            "num_layers": 27,
            "head_dim": 64,
            "vocab_size": 20000,
            "bias": True,
            "ffn_weight_tying": True,
        },
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_count_is_that_of_the_facts(name: str) -> None:
    expected, values = FACTS[name]
    common = {
        "model_type": "super-tiny-lm",
        "ffn_type": "swiglu",
        "num_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 50257,
        "norm": "rmsnorm",
        "positional_encoding": "rope",
        "group_size": 4,
        "embedding_weight_tying": "byte" not in name,
    }
    assert checks.params({**common, **values}) == expected


def test_the_smallest_is_the_default() -> None:
    assert checks.params({"model_type": "super-tiny-lm"}) == 9_650_304


# --- one FFN ------------------------------------------------------------------------------------------------------------


def test_all_layers_run_one_ffn(tmp_path: Path) -> None:
    """As one tensor in memory, in our files and in those of transformers; attention and norms stay each layer's own."""
    model = made("100m")
    first, *others = model.model.layers
    for layer in others:
        assert layer.mlp.up_proj.weight is first.mlp.up_proj.weight
        assert layer.mlp.down_proj.bias is first.mlp.down_proj.bias
        assert layer.self_attn.qkv_proj.weight is not first.self_attn.qkv_proj.weight
    model.float().save_pretrained(tmp_path)
    assert {
        name.split(".")[2] for name in safetensors.read_header(tmp_path / "model.safetensors") if ".mlp." in name
    } == {"0"}
    loaded: Any = zoo.load(tmp_path).module
    assert loaded.model.layers[2].mlp.up_proj.weight is loaded.model.layers[0].mlp.up_proj.weight
    ids = checks.tokens(model)
    assert torch.equal(checks.logits(loaded, ids), checks.logits(model, ids))


# --- bytes ----------------------------------------------------------------------------------------------------------------


def test_whole_tokens_of_bytes_are_written_at_once() -> None:
    """With a cache, and padded in front, what repeated whole passes would pick."""
    model = made("byte-level")
    rows = [checks.tokens(model, batch=1, length=length, seed=length) for length in (5, 2)]
    expected = []
    for row in rows:
        for _ in range(3):
            row = torch.cat([row, checks.logits(model, row)[:, -1:].argmax(-1)], dim=1)
        expected.append(row[0, -3:])
    ids = torch.cat([rows[0], nn.functional.pad(rows[1], (0, 0, 3, 0), value=PAD)])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=3)
    assert found.shape == (2, 8, 5)
    for row, wanted in zip(found, expected, strict=True):
        assert torch.equal(row[-3:], wanted)


def test_writing_stops_at_the_end_of_text() -> None:
    """A row that has ended is filled up with ends; when all have, nothing more is written."""
    model = made("byte-level")
    first = []

    def ends(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        first.append(len(first))
        forced = logits.clone()
        forced[0, -1, 0, END] = 1e4  # the first row at once
        if len(first) > 1:
            forced[1, -1, 0, END] = 1e4
        return forced

    with torch.no_grad():
        hook = model.lm_head.register_forward_hook(ends)
        found = model.generate(checks.tokens(model, length=4), max_new_tokens=9)
        hook.remove()
    assert found.shape == (2, 6, 5)
    assert found[0, 5].tolist() == [END, PAD, PAD, PAD, PAD]
    assert found[1, 4, 0] != END and found[1, 5, 0] == END


def test_reconstruction_compares_bytes_with_themselves() -> None:
    """The head straight after the embedder; the end of text does not count, padding does."""
    model = made("byte-level")
    w = {name: tensor.detach() for name, tensor in model.named_parameters()}
    ids = torch.tensor([[[72, 105, PAD, PAD, PAD], [END, PAD, PAD, PAD, PAD]]])
    nats = []
    for slots in ids[0]:
        chances = byte_logits(w, byte_vector(w, slots)).log_softmax(-1)
        nats += [-chances[i, byte] for i, byte in enumerate(slots.tolist()) if byte != END]
    assert len(nats) == 9
    torch.testing.assert_close(reconstruction_loss(model, ids).double(), torch.stack(nats).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ffn_type": "relu"}, "ffn_type is 'relu', not one of swiglu, gelu"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide among 3 key/value heads"),
        ({"byte_context_window": 12}, "a byte-level model has no table that its head could share"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):  # transformers wraps it in an error of its own
        SuperTinyConfig(**{**SMALL, **changes})
