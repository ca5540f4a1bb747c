"""Magnitude pruning: the right entries, of the right matrix, in the right direction."""

from __future__ import annotations

import pytest
import torch
from stages import apply, assert_outline_foretells, assert_replays, check, logits, small
from twins import TWINS, tokens
from zoo_compress.methods.prune.magnitude import PruneMagnitude

from zoo.anatomy.modules import resolve
from zoo.anatomy.parts import Part
from zoo.errors import Refused
from zoo.model.building import cast_parameters


def weight(model, path):
    found = resolve(model.module, path)
    return found if isinstance(found, torch.Tensor) else found.weight


def matrices(model):
    """Every logical matrix of the language stack as (out, in) copies, read part by part from the anatomy."""
    found = {}
    for block in model.anatomy.stacks["language"].blocks:
        parts = {"o": (block.attention.o, True), "down": (block.ffn.down, True), "up": (block.ffn.up, False)}
        parts |= {name: (getattr(block.attention, name), False) for name in "qkv"}
        if block.ffn.gate:
            parts["gate"] = (block.ffn.gate, False)
        for name, (part, is_input) in parts.items():
            found[block.path, name] = as_out_in(weight(model, part.path).detach(), part, is_input).clone()
    return found


def as_out_in(tensor: torch.Tensor, part: Part, is_input: bool) -> torch.Tensor:
    """(out, in), or (experts, out, in), entry by entry."""
    rows = [part.offset + unit * part.stride + offset for unit in range(part.units) for offset in range(part.width)]
    units_first = torch.stack([tensor.select(part.axis, row) for row in rows], dim=-2)
    return units_first.transpose(-1, -2) if is_input else units_first


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("sparsity", [0.3, 0.77])
def test_the_smallest_go_and_their_number_is_exact(name, sparsity):
    model = small(name)
    before = matrices(model)
    apply(model, "prune.magnitude", {"sparsity": sparsity})
    for key, after in matrices(model).items():
        for was, now in zip(
            before[key].reshape(-1, *after.shape[-2:]), after.reshape(-1, *after.shape[-2:]), strict=True
        ):
            count = round(sparsity * was.numel())
            assert int((now == 0).sum()) == count
            assert sorted(was.abs().flatten().tolist())[count:] == sorted(now.abs().flatten().tolist())[count:]
            assert torch.equal(now[now != 0], was[now != 0])


@pytest.mark.quick
@pytest.mark.parametrize("name", TWINS)
def test_two_of_four_stay_along_the_inputs(name):
    model = small(name)
    before = matrices(model)
    apply(model, "prune.magnitude", {"pattern": "2:4"})
    for key, after in matrices(model).items():
        for row_before, row_after in zip(
            before[key].reshape(-1, before[key].shape[-1]).tolist(),
            after.reshape(-1, after.shape[-1]).tolist(),
            strict=True,
        ):
            for start in range(0, len(row_before), 4):
                group = row_before[start : start + 4]
                largest = sorted(range(4), key=lambda i: -abs(group[i]))[:2]
                assert row_after[start : start + 4] == [v if i in largest else 0.0 for i, v in enumerate(group)]


@pytest.mark.parametrize("name", TWINS)
def test_everything_else_stays_and_a_saved_model_loads(name, tmp_path):
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.tensors().items()}
    assert_outline_foretells(model, "prune.magnitude", sparsity=0.5)
    pruned = set(model.lineage[-1].record["paths"])
    for key, tensor in model.tensors().items():
        if key.removesuffix(".weight") not in pruned:
            assert torch.equal(tensor, before[key]), key
    assert_replays(model, tokens(), tmp_path)


def test_a_fused_projection_loses_the_weights_its_unfused_twin_loses():
    """Phi-3's qkv_proj holds llama's q, k and v one below the other, but the scales of the three may differ."""
    fused = small("phi3")
    attention = fused.anatomy.stacks["language"].blocks[0].attention
    with torch.no_grad():
        weight(fused, attention.q.path)[: attention.heads * attention.head_dim] *= 100
    apply(fused, "prune.magnitude", {"sparsity": 0.5, "target": "language.attention"})
    rows = weight(fused, attention.q.path)
    split = attention.heads * attention.head_dim
    assert int((rows[:split] == 0).sum()) == rows[:split].numel() // 2


def test_zeros_that_were_there_count():
    model = small("llama")
    up = model.module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        up[:16] = 0.0
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    assert int((up == 0).sum()) == up.numel() // 2 and bool((up[:16] == 0).all())


@pytest.mark.quick
def test_equal_magnitudes_are_cut_to_the_exact_count():
    model = small("llama")
    up = model.module.model.layers[0].mlp.up_proj.weight
    torch.nn.init.constant_(up, -0.25)
    apply(model, "prune.magnitude", {"sparsity": 0.4})
    assert int((up == 0).sum()) == round(0.4 * up.numel())


@pytest.mark.quick
def test_a_shared_layer_is_pruned_once():
    model = small("llama")
    apply(model, "share.ffn")
    apply(model, "prune.magnitude", {"pattern": "1:4"})
    shared = model.module.model.layers[1].mlp.up_proj.weight
    assert int((shared == 0).sum()) == shared.numel() * 3 // 4


@pytest.mark.parametrize(("values", "detail"), [({"sparsity": 0.5}, "50%"), ({"pattern": "2:4"}, "2:4")])
def test_pruned_layers_are_declared_sparse(values, detail):
    model = small("llama")
    apply(model, "prune.magnitude", {**values, "target": "language.blocks[1].ffn"})
    traits = model.state()
    assert set(traits) == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    (trait,) = traits["model.layers.1.mlp.up_proj"]
    assert (trait.kind, trait.detail, trait.stage) == ("sparse", detail, "stage 1 (prune.magnitude)")


def test_half_precision_is_pruned_in_place(tmp_path):
    model = small("llama")
    cast_parameters(model.module, torch.bfloat16)
    model.dtype = model.stored = "bfloat16"
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    up = model.module.model.layers[0].mlp.up_proj.weight
    assert up.dtype == torch.bfloat16 and int((up == 0).sum()) == up.numel() // 2
    assert_replays(model, tokens(), tmp_path)


def test_the_note_promises_nothing():
    model = small("llama")
    note = PruneMagnitude().note(model, None)
    assert "does not shrink" in note and "nothing runs faster on CPU" in note and "sparsegpt" not in note
    model.origin = "here"
    assert "prune.sparsegpt or prune.wanda" in PruneMagnitude().note(model, None)
    before = model.bytes
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    assert model.bytes == before


def test_a_group_that_does_not_divide_the_inputs_is_refused():
    with pytest.raises(Refused, match=r"q_proj has 32 inputs, which 5 does not divide; pattern 3:5 needs whole groups"):
        check(small("llama"), "prune.magnitude", pattern="3:5")


@pytest.mark.quick
def test_packed_layers_are_refused_with_the_order_that_works():
    model = small("llama")
    apply(model, "quantize.int8")
    with pytest.raises(Refused, match=r"is packed \(8 bits\) by stage 1.*Put prune.magnitude before quantize.int8"):
        check(model, "prune.magnitude", sparsity=0.5)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "sparsity is missing"),
        ({"pattern": "4:2"}, "N:M with 0 < N < M"),
        ({"pattern": "half"}, "'half' is not a pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "makes 50% of the weights zero; leave sparsity out"),
        ({"sparsity": 1.0}, "less than 1"),
    ],
)
def test_unreadable_options_say_what_to_write(values, says):
    with pytest.raises(ValueError, match=says):
        PruneMagnitude.Options(**values)


def test_pruning_changes_the_function_but_not_the_random_state():
    model, ids = small("mixtral"), tokens()
    before, state = logits(model, ids), torch.get_rng_state()
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    assert not torch.equal(logits(model, ids), before)
    assert torch.equal(torch.get_rng_state(), state)
