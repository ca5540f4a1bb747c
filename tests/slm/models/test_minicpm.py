"""MiniCPM: its three constants, its four versions, and the fold into a plain Llama."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor
from torch.nn.functional import silu
from transformers import LlamaForCausalLM
from zoo_slm.models.minicpm import MiniCPMConfig, MiniCPMForCausalLM, activation, fold

import zoo
from zoo.errors import ArtifactError, Refused, RequestError

# The config.json of the S version but for its activation, which is the 1B model's; sizes are replaced below.
FILE: dict[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "model_type": "minicpm",
    "auto_map": {
        "AutoConfig": "configuration_minicpm.MiniCPMConfig",
        "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.1,
    "intermediate_size": 3840,
    "max_position_embeddings": 4096,
    "num_attention_heads": 24,
    "num_hidden_layers": 52,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 73440,
    "scale_emb": 12,
    "dim_model_base": 256,
    "scale_depth": 1.4,
}
TWO = {
    "hidden_size": 2304,
    "intermediate_size": 5760,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "vocab_size": 122753,
}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_theta": 1000000.0, "tie_word_embeddings": False}

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "dim_model_base": 8,
}
VERSIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sparse": {"hidden_act": "fatrelu", "hidden_act_param": 0.03},
    "128k": DYNAMIC,
    "moe": {"num_experts": 4, "num_experts_per_tok": 2},
}


def made(version: str, **changes: Any) -> MiniCPMForCausalLM:
    values = copy.deepcopy({**SMALL, **VERSIONS[version], **changes})  # transformers writes into rope_scaling
    return checks.tiny(MiniCPMForCausalLM, MiniCPMConfig(**values))


@pytest.fixture(scope="module", params=VERSIONS)
def model(request: pytest.FixtureRequest) -> MiniCPMForCausalLM:
    return made(request.param)


# --- the formulas ---------------------------------------------------------------------------------------------------------


def reference(model: MiniCPMForCausalLM, ids: Tensor, frequencies: Tensor) -> Tensor:
    """The logits (T, V) of one text, from the formulas, with scale_emb 12, scale_depth 1.4 and three layers of width 32."""
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    x = tensors["model.embed_tokens.weight"][ids] * 12
    for layer in range(3):
        place = f"model.layers.{layer}."
        y = checks.rms_norm(x, tensors[f"{place}input_layernorm.weight"], 1e-5)
        y = checks.llama_attention(y, tensors, f"{place}self_attn.", heads=4, kv_heads=2, frequencies=frequencies)
        x = x + y * (1.4 / 3**0.5)
        y = checks.rms_norm(x, tensors[f"{place}post_attention_layernorm.weight"], 1e-5)
        x = x + torch.stack([fed(y_D, tensors, f"{place}mlp.", model.config) for y_D in y]) * (1.4 / 3**0.5)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return (checks.rms_norm(x, tensors["model.norm.weight"], 1e-5) / (32 / 8)) @ head.T


def fed(x_D: Tensor, tensors: dict[str, Tensor], place: str, config: MiniCPMConfig) -> Tensor:
    """What the FFN makes of one token."""
    if not config.num_experts:
        gate_F, up_F = (tensors[f"{place}{name}_proj.weight"] @ x_D for name in ("gate", "up"))
        gate_F = silu(gate_F) if config.hidden_act == "silu" else torch.where(gate_F > 0.03, gate_F, 0.0)
        return tensors[f"{place}down_proj.weight"] @ (gate_F * up_F)
    shares = torch.softmax(tensors[f"{place}gate.weight"] @ x_D, 0).tolist()
    best = sorted(range(4), key=lambda expert: -shares[expert])[:2]
    out_D = torch.zeros_like(x_D)
    for expert in best:
        (w1, w3), w2 = (
            tensors[f"{place}experts.gate_up_proj"][expert].chunk(2),
            tensors[f"{place}experts.down_proj"][expert],
        )
        out_D += shares[expert] / sum(shares[other] for other in best) * (w2 @ (silu(w1 @ x_D) * (w3 @ x_D)))
    return out_D


def test_logits_are_those_of_the_formulas(model: MiniCPMForCausalLM):
    ids = checks.tokens(model)
    frequencies = checks.rotary_frequencies(8, model.config.rope_parameters["rope_theta"])
    expected = torch.stack([reference(model, row, frequencies) for row in ids])
    checks.near(checks.logits(model, ids), expected)


def test_a_text_beyond_the_trained_length_raises_the_rotary_base():
    model = made("128k", max_position_embeddings=8, rope_theta=10000.0)
    short, long = checks.tokens(model, batch=1, length=7), checks.tokens(model, batch=1, length=12)
    within = checks.logits(model, short)
    checks.near(within[0], reference(model, short[0], checks.rotary_frequencies(8)))
    base = 10000.0 * (4.0 * 12 / 8 - (4.0 - 1)) ** (8 / (8 - 2))
    checks.near(checks.logits(model, long)[0], reference(model, long[0], checks.rotary_frequencies(8, base)))
    assert torch.equal(checks.logits(model, short), within)


def test_fatrelu_is_the_identity_above_its_threshold():
    act = activation(MiniCPMConfig(hidden_act="fatrelu", hidden_act_param=0.03))
    values = torch.tensor([-1.0, 0.0, 0.02, 0.03, 0.0301, 2.0])
    assert torch.equal(act(values), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0301, 2.0]))


def test_embeddings_that_are_given_are_not_scaled():
    model = made("dense")
    ids = checks.tokens(model)
    given = model.model.embed_tokens(ids) * 12
    assert torch.equal(checks.logits(model, None, inputs_embeds=given), checks.logits(model, ids))


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_start_narrower_in_a_wider_model(tied: bool):
    torch.manual_seed(0)
    model = MiniCPMForCausalLM(
        MiniCPMConfig(**{**SMALL, "hidden_size": 64, "dim_model_base": 4, "tie_word_embeddings": tied})
    )
    found = {name: float(tensor.detach().std()) for name, tensor in model.named_parameters()}
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        assert found[name] == pytest.approx(0.1, rel=0.05)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"):
        assert found[name] == pytest.approx(0.1 / (64 / 4) ** 0.5, rel=0.05)
    family = checks.as_model(model).family
    family.initialise(model)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.025, rel=0.05)


def test_what_the_family_gives_the_head_is_divided():
    model = checks.as_model(made("dense"))
    ids = checks.tokens(model.module)
    with torch.no_grad():
        hidden, head = model.family.hidden(model, {"input_ids": ids})
        assert torch.equal(head(hidden), checks.logits(model.module, ids))


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_it_runs_as_every_model_does(model: MiniCPMForCausalLM, check: Any):
    check(model)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (TWO, 2_724_880_896),
        ({}, 1_360_246_272),  # 1B
        (VERSIONS["sparse"], 1_360_246_272),
        ({**TWO, **DYNAMIC, "max_position_embeddings": 65536, "vocab_size": 122760}, 3_007_736_064),
        ({**TWO, "num_experts": 8, "num_experts_per_tok": 2}, 13_873_291_776),
    ],
    ids=["2b", "1b", "s-1b", "2b-128k", "moe-8x2b"],
)
def test_it_has_as_many_parameters_as_was_published(changes: dict[str, Any], count: int):
    assert checks.params({**FILE, **changes}) == count


def test_more_experts_for_a_token_than_there_are_is_refused():
    with pytest.raises(RequestError, match="num_experts_per_tok is 3, of 2 experts"):
        checks.params({**FILE, **SMALL, "num_experts": 2, "num_experts_per_tok": 3})


# --- published files ------------------------------------------------------------------------------------------------------


def names(version: str) -> set[str]:
    """Those of a published file of three layers."""
    ffn = ["gate.weight", *(f"experts.{i}.{name}.weight" for i in range(4) for name in ("w1", "w2", "w3"))]
    if version != "moe":
        ffn = [f"{name}_proj.weight" for name in ("gate", "up", "down")]
    parts = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    ]
    parts += [f"mlp.{name}" for name in ffn]
    outside = {"model.embed_tokens.weight", "model.norm.weight", *(["lm_head.weight"] if version == "128k" else [])}
    return outside | {f"model.layers.{layer}.{part}" for layer in range(3) for part in parts}


def published(model: MiniCPMForCausalLM) -> dict[str, Tensor]:
    """The tensors as files hold them, every expert for itself."""
    found = {}
    for name, tensor in model.named_parameters():
        place, _, stack = name.partition("experts.")
        for index in range(4 if stack else 0):
            parts = (
                {"w1": tensor[index].chunk(2)[0], "w3": tensor[index].chunk(2)[1]}
                if stack == "gate_up_proj"
                else {"w2": tensor[index]}
            )
            found |= {f"{place}experts.{index}.{part}.weight": matrix.float() for part, matrix in parts.items()}
        if not stack:
            found[name] = tensor.float()
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_published_checkpoint_loads(tmp_path: Path, version: str):
    model = made(version)
    tensors = published(model)
    assert tensors.keys() == names(version)
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL, **VERSIONS[version]}, tensors)
    loaded = zoo.load(folder, dtype="float32")
    assert type(loaded.module) is MiniCPMForCausalLM
    assert loaded.aliases() == ({} if version == "128k" else {"lm_head.weight": "model.embed_tokens.weight"})
    ids = checks.tokens(model)
    assert torch.equal(checks.logits(loaded.module, ids), checks.logits(checks.as_model(model).module, ids))


def test_a_missing_expert_is_named(tmp_path: Path):
    tensors = published(made("moe"))
    del tensors["model.layers.1.mlp.experts.2.w3.weight"]
    folder = checks.write_checkpoint(tmp_path / "hub", {**FILE, **SMALL, **VERSIONS["moe"]}, tensors)
    with pytest.raises(
        ArtifactError, match=r"'model.layers.1.mlp.experts.2.w3.weight' is missing, where other experts have \(48, 32\)"
    ):
        zoo.load(folder)


# --- folding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "bias"), [("dense", False), ("dense", True), ("128k", False)])
def test_folded_into_a_llama_it_gives_the_same_logits(version: str, bias: bool):
    model = made(version, attention_bias=bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = checks.tokens(model)
    folded = fold(model)
    assert type(folded) is LlamaForCausalLM and not folded.training
    checks.near(checks.logits(folded, ids), checks.logits(model, ids), 1e-6)
    assert folded.lm_head.weight is not folded.model.embed_tokens.weight
    assert folded.config.model_type == "llama" and not folded.config.tie_word_embeddings
    assert not {"scale_emb", "scale_depth", "dim_model_base"} & folded.config.to_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    checks.padded_equals_alone(folded)


def test_folded_in_bfloat16_it_is_near():
    model = made("dense").bfloat16()
    folded = fold(model)
    assert folded.dtype == torch.bfloat16
    ids = checks.tokens(model)
    checks.near(checks.logits(folded, ids), checks.logits(model, ids), 0.05)


def test_a_pruned_model_is_folded_with_the_scales_it_was_trained_with(tmp_path: Path):
    fewer = checks.compressed(made("dense"), tmp_path / "saved", "inherit", layers="first:2").module
    ids = checks.tokens(fewer)
    checks.near(checks.logits(fold(fewer), ids), checks.logits(fewer, ids))
    assert fewer.model.layers[0].residual_scale == 1.4 / 3**0.5


@pytest.mark.parametrize(("version", "reason"), [("sparse", "no fatrelu gate"), ("moe", "4 experts")])
def test_what_a_llama_does_not_have_is_not_folded(version: str, reason: str):
    with pytest.raises(RequestError, match=reason):
        fold(made(version))


def test_factored_layers_are_not_folded(tmp_path: Path):
    factored = checks.compressed(made("dense"), tmp_path / "saved", "lowrank.svd", ratio=0.5, samples=4, length=32)
    with pytest.raises(
        RequestError, match=r"mlp.* is \(.*\), which a Llama of this config has as absent; it cannot be folded"
    ):
        fold(factored.module)


# --- saving and compressing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, version: str):
    checks.roundtrip(made(version), tmp_path / "saved")


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("prune.structured", {"ffn": 0.25, "heads": 0.5}),
        ("prune.structured", {"width": 0.25}),
        ("share.ffn", {}),
        ("quantize.int8", {}),
    ],
    ids=["ffn and heads", "width", "share", "int8"],
)
def test_compressors_work_on_the_dense_version(tmp_path: Path, stage: str, options: dict[str, Any]):
    checks.compressed(made("dense"), tmp_path / "saved", stage, **options)


def test_experts_are_pruned_and_never_left_out_in_silence(tmp_path: Path):
    model = made("moe")
    assert checks.as_model(model).anatomy.stack().blocks[0].ffn.experts == 4
    checks.compressed(model, tmp_path / "saved", "prune.structured", ffn=0.25, heads=0.5)
    with pytest.raises(Refused, match="holds 4 experts"):
        checks.compressed(model, tmp_path / "share.ffn", "share.ffn")
    packed = checks.compressed(model, tmp_path / "quantize.int8", "quantize.int8")
    record = packed.lineage[-1].record
    assert len(record["experts"]) == len(packed.anatomy.stack().blocks) and [
        k["kind"] for k in record["left_as_is"]
    ] == ["routers"]
