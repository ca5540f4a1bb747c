"""Layers without heads or channels are named matrix by matrix: mixers, latent attention, experts, adapters, routers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from stages import small
from torch import nn

from zoo.anatomy.coverage import unnamed
from zoo.anatomy.detect import detect
from zoo.anatomy.direct_reads import read_directly
from zoo.anatomy.modules import features
from zoo.anatomy.parts import Anatomy, Block, Linears
from zoo.errors import UnknownName
from zoo.testing.checks.anatomies import _faults

pytestmark = pytest.mark.quick

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def empty(kind: str, **config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config))
    return model


def deepseek() -> nn.Module:
    return empty(
        "DeepseekV3",
        **SIZES,
        **HEADS | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )


def jamba() -> nn.Module:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    return empty(
        "Jamba", **SIZES, **HEADS, **experts, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    )


def mamba() -> nn.Module:
    return empty("Mamba", **SIZES, state_size=4, time_step_rank=4)


def named(block: Block) -> dict[str, set[str]]:
    """Part -> the names of its layers, below the block."""
    parts: dict[str, set[str]] = {}
    for layer in block.linears:
        parts.setdefault(layer.part, set()).update(path.removeprefix(f"{block.path}.") for path in layer.projections)
    return parts


def test_latent_attention_and_shared_experts() -> None:
    dense, sparse = detect(deepseek()).stacks["language"].blocks
    attention = {f"self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
    assert dense.attention is None and dense.ffn is not None and named(dense) == {"attention": attention}
    shared = {f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
    tables = {f"mlp.experts.{name}_proj" for name in ("gate_up", "down")}
    assert sparse.ffn is None and named(sparse) == {"attention": attention, "ffn": shared | tables}
    assert sparse.all_routers == ("model.layers.1.mlp.gate",)


def test_a_recurrent_mixer_and_the_width_it_reads_and_writes() -> None:
    stack = detect(mamba()).stacks["language"]
    assert stack.width == 32 and stack.norms and stack.embeddings
    layers = tuple(f"backbone.layers.0.mixer.{name}" for name in ("in_proj", "x_proj", "dt_proj", "out_proj"))
    assert stack.blocks[0].linears == (Linears("mixer", "backbone.layers.0.mixer", layers),)


def test_blocks_of_two_classes_are_one_stack() -> None:
    first, second = detect(jamba()).stacks["language"].blocks
    assert set(named(first)) == {"mixer"} and first.attention is None and first.ffn is not None
    assert second.attention is not None and second.ffn is not None and second.ffn.router is not None


@pytest.mark.parametrize("make", [deepseek, jamba, mamba])
def test_every_linear_layer_is_named_and_each_once(make: Any) -> None:
    module = make()
    anatomy = detect(module)
    assert unnamed(anatomy, [path for path, part in module.named_modules() if features(part)]) == []
    for block in anatomy.stacks["language"].blocks:
        paths = [path for layer in block.linears for path in layer.projections]
        described = {path for part in (block.attention, block.ffn) if part for path in part.projections}
        assert len(paths) == len(set(paths)) and not {*paths, *described} & {*block.all_routers}
        assert not set(paths) & described


def test_a_target_takes_in_the_part_it_names() -> None:
    anatomy = detect(jamba())
    names = {part: list(anatomy.select(f"language.{part}").projections()) for part in ("mixer", "attention", "ffn")}
    assert len(names["mixer"]) == 4 and all(".mamba." in path for path in names["mixer"])
    assert len(names["attention"]) == 4 and len(names["ffn"]) == 3 + 2
    assert set(anatomy.select("language").projections()) == {path for paths in names.values() for path in paths}
    with pytest.raises(UnknownName, match=r"\.attention, \.ffn or \.mixer\."):
        anatomy.select("language.mixers")


def test_a_layer_outside_the_blocks_is_in_a_region_of_its_own() -> None:
    config = transformers.EsmConfig(
        **SIZES, num_attention_heads=4, intermediate_size=48, max_position_embeddings=32, mask_token_id=4
    )
    with torch.device("meta"):
        anatomy = detect(transformers.EsmForMaskedLM(config))
    assert anatomy.layers == {"other": ("esm.contact_head.regression",)}
    assert list(anatomy.select("other").layers) == ["esm.contact_head.regression"]


def test_what_the_code_around_a_layer_reads_is_told_from_the_code() -> None:
    module = mamba()
    assert read_directly(module, "backbone.layers.0.mixer.dt_proj")
    assert not read_directly(module, "backbone.layers.0.mixer.in_proj")
    assert not read_directly(nn.ModuleDict({"layer": nn.Linear(2, 2)}), "layer")


# --- the contract ---------------------------------------------------------------------------------------------------

GATES = tuple(f"model.layers.{i}.gate" for i in range(2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"linears": ()},
            r"the block at model\.layers\.0 has no linear layer model\.layers\.0\.gate; name it in a part",
        ),
        (
            {"linears": (Linears("gate", "model.layers.0", GATES[:1]),)},
            r"its 'gate', which is none of attention, ffn, mixer",
        ),
        (
            {"linears": (Linears("mixer", "model.norm", GATES[:1]),)},
            r"model\.norm is a part of the block at model\.layers\.0",
        ),
        (
            {"linears": (Linears("", "model.layers.0", GATES[:1], reads=GATES[1:]),)},
            "layers.1.gate reads the residual, but",
        ),
        ({"linears": (Linears("", "model.layers.0", GATES[:1], writes=GATES[:1]),)}, "of width 32, but is 32 to 4"),
        ({"routers": GATES[:1]}, r"model\.layers\.0\.gate is two things in the block at model\.layers\.0"),
        ({"routers": ("model.layers.0.router",)}, r"there is a weight at model\.layers\.0\.router, but there is none"),
    ],
)
def test_the_contract_looks_at_every_layer_that_is_named_or_should_be(changes: dict[str, Any], sentence: str) -> None:
    model = small("llama")
    for layer in model.module.model.layers:  # type: ignore[union-attr]
        layer.gate = nn.Linear(32, 4)
    check_paths(model.module, detect(model.module))
    stack = detect(model.module).stacks["language"]
    blocks = (replace(stack.blocks[0], **changes), *stack.blocks[1:])
    with pytest.raises(AssertionError, match=sentence):
        check_paths(model.module, Anatomy(stacks={"language": replace(stack, blocks=blocks)}))


def check_paths(module: nn.Module, anatomy: Anatomy) -> None:
    faults = list(_faults(module, anatomy))
    assert not faults, faults
