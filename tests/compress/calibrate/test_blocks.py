"""The walk: at every block, statistics are those of a plain pass through the model as it then is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from stages import small
from torch import nn
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.statistics import Statistics, rows_read
from zoo_compress.calibrate.watch import Batches, input_of

from zoo.errors import ZooError
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.tensors.batch import Batch, unpadded, without_padding

EVERYTHING = ("gram", "squares", "absmax", "sum", "abssum")


def layers(model: Model) -> list[str]:
    target = model.anatomy.select("all")
    parts = dict(model.module.named_modules())
    picked = [path for path in dict.fromkeys((*target.projections(), *target.layers)) if path in parts]
    return [path for path in picked if isinstance(parts[path], nn.Linear | nn.Conv2d) or hasattr(parts[path], "nf")]


def examples(model: Model, *, count: int = 3) -> Batches:
    made = Batches(model.family.example(model, batch=2, size=12, seed=seed) for seed in range(count))
    made.origins = [f"sample {i}" for i in range(count)]
    return made


def plain(model: Model, paths: list[str], data: list[Batch]) -> dict[str, Statistics]:
    """What layers read in plain passes through the whole model."""
    sums = {path: Statistics(EVERYTHING) for path in paths}
    kept: list[Any] = [None]
    for path, statistics in sums.items():

        def see(layer: nn.Module, args: Any, kwargs: Any, statistics: Statistics = statistics) -> None:
            statistics.add(rows_read(layer, without_padding(input_of(args, kwargs), kept[0])))

        model.module.get_submodule(path).register_forward_pre_hook(see, with_kwargs=True)
    for batch in data:
        kept[0] = unpadded(batch)
        with torch.no_grad():
            model.family.forward(model, batch)
    for path in paths:
        model.module.get_submodule(path)._forward_pre_hooks.clear()
    return sums


def same(one: Statistics, other: Statistics) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in one.names]
    return one.tokens == other.tokens and all(a is b is None or torch.equal(a, b) for a, b in pairs)


def walked(model: Model, data: Batches, **changes: Any) -> Walk:
    return Walk(
        model, layers(model), data, **{"statistics": ("gram",), "context": Context(), "stage": "test", **changes}
    )


def shrink(model: Model, path: str) -> None:
    with torch.no_grad():
        model.module.get_submodule(path).weight.mul_(0.75)


@pytest.mark.parametrize("name", cases.BASES)
def test_each_unit_sees_what_the_model_as_it_then_is_reads(name: str, tmp_path: Path) -> None:
    model = cases.base(name, tmp_path)
    data = examples(model)
    walk = walked(model, data, statistics=EVERYTHING)
    seen = 0
    for number, unit in enumerate(walk):
        if len(walk.order.units) < 50 or number % 7 == 0:  # a plain pass for each of many units takes long
            expected = plain(model, list(unit.layers), data)
            assert all(same(statistics, expected[path]) for path, statistics in unit.layers.items()), unit.path
        for path in unit.layers:
            shrink(model, path)
        seen += len(unit.layers)
    assert seen and seen == len({id(model.module.get_submodule(path)) for path in layers(model)})
    assert walk.order.replayable
    assert walk.stored > 0


@pytest.mark.quick
def test_layers_that_read_one_tensor_share_its_sums() -> None:
    model = small("qwen3")
    for unit in walked(model, examples(model)):
        q, k, v = (unit.layers[f"{unit.path}.self_attn.{name}_proj"] for name in "qkv")
        assert q is k is v
        assert q is not unit.layers[f"{unit.path}.self_attn.o_proj"]
        assert unit.layers[f"{unit.path}.mlp.gate_proj"] is unit.layers[f"{unit.path}.mlp.up_proj"]


def test_outputs_go_when_no_later_unit_reads_them(tmp_path: Path) -> None:
    model = small("llama-tied", num_hidden_layers=6)
    walk = walked(model, examples(model), context=Context(checkpoint=tmp_path))
    files = [len(list(tmp_path.glob("outputs-*.bin"))) for _ in walk]
    assert files == [0, 1, 1, 1, 1, 1]


def test_encoder_outputs_stay_for_all_of_the_decoder(tmp_path: Path) -> None:
    model = cases.base("flan-t5-small, tiny", tmp_path / "model")
    folder = tmp_path / "walk"
    folder.mkdir()
    files = [
        len(list(folder.glob("outputs-*.bin")))
        for _ in walked(model, examples(model), context=Context(checkpoint=folder))
    ]
    assert max(files) > 1


def test_the_passes_that_learn_the_order_hardly_grow_with_the_depth() -> None:
    passes = {}
    for depth in (3, 27):
        model = small("llama", num_hidden_layers=depth)
        ran = []
        hook = model.module.model.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        order = walked(model, examples(model))._learnt()
        hook.remove()
        passes[depth] = len(ran)
        following = {unit: number + 1 for number, unit in enumerate(order.units)}
        assert {unit: order.last_reader[unit] for unit in order.units[:-2]} == {
            unit: following[unit] for unit in order.units[:-2]
        }
    assert passes[27] - passes[3] == 2 * 3, "5 bits number 30 units, and 3 number 6"


def test_held_out_batches_are_summed_apart() -> None:
    model = small("qwen3")
    data = examples(model, count=4)
    for unit in walked(model, data, held_out=0.25):
        expected = plain(model, list(unit.layers), data[:3]), plain(model, list(unit.layers), data[3:])
        for path in unit.layers:
            assert torch.equal(unit.layers[path].gram, expected[0][path].gram)
            assert torch.equal(unit.held_out[path].gram, expected[1][path].gram)


def test_padding_takes_no_part(tmp_path: Path) -> None:
    model = cases.base("bert, vectors", tmp_path)
    batch = model.family.example(model, batch=2, size=12)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 5:] = 0
    tokens = {seen.tokens for unit in walked(model, Batches([batch])) for seen in unit.layers.values()}
    assert tokens == {12 + 5}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("name", ["llama-tied", "flan-t5-small, tiny", "tiny-vlm", "mobillama-0.5b, tiny"])
def test_a_walk_that_was_killed_goes_on_with_the_same_result(name: str, at: int, tmp_path: Path) -> None:
    model = cases.base(name, tmp_path / "model")
    straight, killed = model.copy(), model.copy()
    tmp_path.joinpath("walk").mkdir()
    for unit in walked(straight, examples(straight)):
        for path in unit.layers:
            shrink(straight, path)
    with pytest.raises(Killed):
        for number, unit in enumerate(walked(killed, examples(killed), context=Context(checkpoint=tmp_path / "walk"))):
            for path in unit.layers:
                if number == at:
                    raise Killed
                shrink(killed, path)
    again = walked(model, examples(model), context=Context(checkpoint=tmp_path / "walk"))
    units = 0
    for unit in again:
        units += 1
        for path in unit.layers:
            shrink(model, path)
    other = straight.module.state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in model.module.state_dict().items())
    assert len(again.table) == len({id(model.module.get_submodule(path)) for path in layers(model)})
    assert units < len(again.order.units) or at == 0


def test_a_damaged_unit_is_done_again(tmp_path: Path) -> None:
    model = small("llama-tied", num_hidden_layers=4)
    data, straight = examples(model), model.copy()
    for unit in walked(straight, data):
        for path in unit.layers:
            shrink(straight, path)
    first = model.copy()
    for unit in walked(first, data, context=Context(checkpoint=tmp_path)):
        for path in unit.layers:
            shrink(first, path)
    file = tmp_path / "unit-0002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    for unit in walked(model, data, context=Context(checkpoint=tmp_path)):
        for path in unit.layers:
            shrink(model, path)
    other = straight.module.state_dict()
    assert all(torch.equal(tensor, other[key]) for key, tensor in model.module.state_dict().items())


def test_a_model_whose_blocks_pass_something_on_beside_their_output_is_run_live() -> None:
    model = small("llama-tied", num_hidden_layers=4)
    blocks = [block.path for block in model.anatomy.stack().blocks]
    note: dict[str, torch.Tensor] = {}

    def leave(_: nn.Module, args: Any, output: Any) -> None:
        note["left"] = output

    def take(_: nn.Module, args: Any) -> Any:
        return (args[0] + note.pop("left"), *args[1:])

    first, last = model.module.get_submodule(blocks[0]), model.module.get_submodule(blocks[-1])
    hook = first.mlp.register_forward_hook(leave)
    last.register_forward_pre_hook(take)
    data = examples(model)
    walk = walked(model, data)
    sums = {path: seen.tokens for unit in walk for path, seen in unit.layers.items()}
    assert not walk.order.replayable
    assert set(sums.values()) == {72}
    hook.remove()


def test_nan_is_refused_with_the_layer_and_the_samples() -> None:
    model = small("llama-tied")
    with torch.no_grad():
        model.module.model.layers[0].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(ZooError, match=r"On sample 0, model\.layers\.0\.mlp\.gate_proj reads nan or infinity"):
        list(walked(model, examples(model)))


def test_dead_inputs_are_counted() -> None:
    model = small("opt")
    with torch.no_grad():
        block = model.module.model.decoder.layers[0]
        block.fc1.weight[:3], block.fc1.bias[:3] = 0, -1
    table = walked(model, examples(model))
    list(table)
    assert table.table["model.decoder.layers.0.fc2"]["dead"] >= 3


def test_a_statistic_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'median' is no statistic; there are gram, squares, absmax, sum, abssum"):
        Statistics(("median",))
