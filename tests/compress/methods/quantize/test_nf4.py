"""NF4: every projection in 4 bits; what the stage shares with int8 is tested there."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from outsiders import python
from stages import apply, assert_outline_foretells, assert_replays, check, exact, logits, small
from torch import nn
from twins import TWINS, tokens
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear
from zoo_compress.methods.quantize.formats.kernels import has_gemv_4bit
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear
from zoo_compress.methods.quantize.nf4 import QuantizeNF4

from zoo.errors import Refused

pytest.importorskip("bitsandbytes")
DENSE = [name for name in TWINS if name != "mixtral"]
LEVELS = torch.tensor(
    [
        -1,
        -0.6961928,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1,
    ]
)


def rounded(weight_OI):
    """Each block of 64 neighbours to the nearest level of its largest magnitude (QLoRA, section 3 and appendix E)."""
    flat = weight_OI.flatten()
    out = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        largest = block.abs().max()
        out.append(LEVELS[(block[:, None] / largest - LEVELS).abs().argmin(dim=1)] * largest)
    return torch.cat(out).reshape(weight_OI.shape)


@pytest.mark.parametrize("name", DENSE)
def test_the_model_computes_with_the_rounded_weights(name):
    model, reference, ids = small(name), small(name), tokens()
    apply(model, "quantize.nf4")
    for path in model.lineage[-1].record["modules"]:
        module = reference.module.get_submodule(path)
        with torch.no_grad():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rounded(module.weight))
            else:
                module.weight.copy_(rounded(module.weight.T.contiguous()).T)
    torch.testing.assert_close(logits(exact(model), ids), logits(reference, ids), rtol=1e-4, atol=1e-4)
    for path in model.lineage[-1].record["modules"]:
        module = reference.module.get_submodule(path)
        expected = module.weight if isinstance(module, nn.Linear) else module.weight.T
        torch.testing.assert_close(model.module.get_submodule(path).dequantize(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("nested", [False, True])
def test_outline_foretells_and_a_saved_model_loads(name, nested, tmp_path):
    model = small(name)
    assert_outline_foretells(model, "quantize.nf4", nested=nested, blocksize=128 if nested else 64)
    assert_replays(model, tokens(), tmp_path)


@pytest.mark.parametrize("name", DENSE)
def test_parameters_stay_and_the_packed_layers_take_half_a_byte_each(name):
    model = small(name)
    params, before = model.params, model.bytes
    weights = {
        path: model.module.get_submodule(path).weight.numel() for path in model.anatomy.select("language").projections()
    }
    apply(model, "quantize.nf4", {"target": "language.blocks[:]"})
    assert model.params == params
    packed = [path for path in model.lineage[-1].record["modules"] if path in weights]
    scales = sum(model.module.get_submodule(path).absmax.numel() * 4 for path in packed)
    others = sum(
        model.module.get_submodule(path).absmax.numel() * 4 - model.module.get_submodule(path).weight_nf4.numel() * 7
        for path in model.lineage[-1].record["modules"]
        if path not in weights
    )
    assert before - model.bytes == sum(weights.values()) * 7 // 2 - scales - others


def test_tables_are_left_as_they_are_unless_asked_for(tmp_path):
    model, ids = small("llama-tied"), tokens()
    apply(model, "quantize.nf4")
    assert isinstance(model.module.model.embed_tokens, nn.Embedding) and isinstance(model.module.lm_head, nn.Linear)
    model = small("llama-tied")
    apply(model, "quantize.nf4", {"embedding": True})
    table, head = model.module.model.embed_tokens, model.module.lm_head
    assert isinstance(table, Int8Embedding) and isinstance(head, Int8Linear) and head.weight_int8 is table.weight_int8
    details = {path: traits[0].detail for path, traits in model.state().items()}
    assert details["lm_head"] == "8 bits" and details["model.layers.0.mlp.up_proj"] == "4 bits"
    assert_replays(model, ids, tmp_path)


def test_both_factors_and_shared_layers_are_packed(tmp_path):
    model, ids = small("llama"), tokens()
    apply(model, "share.ffn")
    apply(model, "lowrank.svd", {"ratio": 0.5, "whiten": False, "target": "language.attention"})
    apply(model, "quantize.nf4", {"skip": ["*.k_proj.*", "*.v_proj.*"]})
    first, second = model.module.model.layers
    assert first.mlp.up_proj is second.mlp.up_proj and isinstance(first.mlp.up_proj, NF4Linear)
    assert isinstance(first.self_attn.q_proj.down, NF4Linear) and isinstance(first.self_attn.k_proj.down, nn.Linear)
    assert_replays(model, ids, tmp_path)


def test_an_odd_number_of_inputs_is_refused():
    with pytest.raises(Refused, match=r"down_proj has 63 inputs, and two 4-bit weights share a byte.*skip = \['model"):
        check(small("llama", intermediate_size=63), "quantize.nf4")


def test_without_bitsandbytes_the_plan_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(Refused, match="which is missing: pip install bitsandbytes"):
        check(small("llama"), "quantize.nf4")


def test_the_note_promises_speed_where_the_kernel_runs():
    said = "prompts and tokens get faster" if has_gemv_4bit() else "costs time"
    assert said in QuantizeNF4().note(small("llama"), None)


def test_importing_bitsandbytes_says_nothing_of_kernels_it_does_without():
    """Where the processor has AVX-512 with bf16, it warns at import that one from the hub is missing."""
    code = "import logging; logging.basicConfig()\nimport zoo\nimport bitsandbytes\nprint(bitsandbytes.functional.__name__)"
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("bitsandbytes.functional\n", "")
