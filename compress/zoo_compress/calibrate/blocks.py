"""Walk through a model block by block: see what a block's layers read, change the block, go on with what it then gives.

So GPTQ (arXiv:2210.17323), SparseGPT (arXiv:2301.00774) and Wanda (arXiv:2306.11695) calibrate: what a layer reads is
what the blocks before it give once they have been compressed. A stage is a loop over the units:

    walk = Walk(model, paths, data, statistics=("squares",), context=context, stage=self.name)
    for unit in walk:
        for path, seen in unit.layers.items():
            weight_OI = weight_out_in(model.module.get_submodule(path))
            ...  # change the weight in place, or put another module at `path`
            unit.table[path]["error"] = ...
    record["layers"] = walk.table

Units are the blocks, and the layers outside them, in the order in which they first run. For each unit the model's own
forward pass runs, the units before it replayed (`replay.py`), and ends once the unit has been seen; the next pass stores
what the unit gives when it has been changed. A module that sits at several places is seen at all of them, and changed once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.anatomy.modules import features, grouped_by_module, inside
from zoo.errors import ZooError, one_line
from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo.system.writing import replace_file
from zoo.tensors.batch import Batch, unpadded, without_padding
from zoo.tensors.offload import Offload, let_go, let_go_after_calls
from zoo.tensors.safetensors import pieces_of
from zoo_compress.calibrate.replay import Enough, Order, Outputs, Shape, replaced
from zoo_compress.calibrate.statistics import Statistics, rows_read
from zoo_compress.calibrate.watch import Batches, finite_yet, input_of, require_sound, samples_of
from zoo_compress.experts import Expert

Names = Collection[str] | Mapping[str, Collection[str]]


@dataclass
class Unit:
    """A block, or a layer outside all blocks, whose layers have been seen and are to be changed now.

    Attributes:
        path: of the block or layer.
        layers: by path, what each of its layers read; layers that read one tensor share one object.
        held_out: the same over the batches that were held out; empty where none were.
        table: by path, what is to be said of each layer in the record, as JSON; begins with what it read.
    """

    path: str
    layers: dict[str, Statistics]
    held_out: dict[str, Statistics] = field(default_factory=dict)
    table: dict[str, Record] = field(default_factory=dict)


class Walk:
    """The units of a model, each with statistics over calibration data; iterate once.

    Args:
        layers: paths of the layers to be seen: linear layers and convolutions.
        data: calibration batches, as `batches` makes them.
        statistics: which, of "gram", "squares", "absmax", "sum", "abssum"; for all layers or by path.
        held_out: share of the batches, the last ones, that are summed up apart.
        rebuild: puts empty modules where a stage put others, given their paths: a stage that is resumed calls it
            for units that are done, before their tensors are read. None where a stage changes weights in place.

    Raises:
        ZooError: a layer reads nan or infinity; names it and the samples.
    """

    def __init__(
        self,
        model: Model,
        layers: Iterable[str],
        data: Batches,
        *,
        statistics: Names,
        context: Context,
        stage: str,
        held_out: float = 0.0,
        rebuild: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        self.model, self.data, self.context, self.stage, self.rebuild = model, data, context, stage, rebuild
        self.device, self.offload = model.device, Offload.of(model.module)
        self.layers = [paths[0] for paths in grouped_by_module(model.module, layers)]
        by_path = statistics if isinstance(statistics, Mapping) else dict.fromkeys(self.layers, statistics)
        self.names = {path: by_path[path] for path in self.layers}
        self.held_out = range(len(data) - round(held_out * len(data)), len(data)) if held_out else range(0)
        self.table: dict[str, Record] = {}

    def __iter__(self) -> Iterator[Unit]:
        with ExitStack() as stack:
            folder = self.context.checkpoint or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-walk-"))
            )
            if self.offload:
                stack.enter_context(let_go_after_calls(self.model.module, units_of(self.model, self.layers)))
            yield from self._units(folder)

    def _units(self, folder: Path) -> Iterator[Unit]:
        self.outputs, self.stored = (
            Outputs(folder, lasting=self.context.checkpoint is not None),
            0,
        )  # files, and of how many units they hold the outputs
        self.order = self._learnt()
        self.places = self._places()
        first = {path: places[0] for path, places in self.places.items()}
        numbers = sorted(set(first.values()))
        done = self._resume(folder, numbers)
        for number in self.context.progress.track(numbers[done:], total=len(numbers) - done, label=self.stage):
            here = [path for path in self.layers if first[path] == number]
            seen, apart = self._watch(number, here)
            parts = {path: self.model.module.get_submodule(path) for path in here}
            told = {path: _told(seen[path], parts[path]) for path in here}
            unit = Unit(self.order.units[number], seen, apart, told)
            yield unit
            self._save(folder / _file(number), unit)
            self.table |= unit.table
            self._put_back(unit.path)

    # --- which units there are --------------------------------------------------------------------------------------

    def _places(self) -> dict[str, list[int]]:
        """The numbers of the units in which each layer runs."""
        numbers: dict[int, list[int]] = {}
        for number, path in enumerate(self.order.units):
            for part in self.model.module.get_submodule(path).modules():
                numbers.setdefault(id(part), []).append(number)
        return {path: numbers[id(self.model.module.get_submodule(path))] for path in self.layers}

    def _learnt(self) -> Order:
        """Learn the order of the units, on passes that end before the head unless something is to be seen there."""
        model, units = self.model, units_of(self.model, self.layers)
        for run in (model.family.forward_body, model.family.forward):
            self.run: Callable[[Batch], Any] = partial(run, model)
            order = Order.learn(model.module, self.run, self.data, units, self.layers)
            called = {unit for calls in order.shapes.values() for unit in calls}
            if all(any(inside(path, unit) for unit in called) for path in self.layers):
                break
        return order

    # --- one pass over the data -------------------------------------------------------------------------------------

    def _watch(self, number: int, paths: list[str]) -> tuple[dict[str, Statistics], dict[str, Statistics]]:
        """Run the data as far as the layers run; store what the units before this one give."""
        leader = self.order.leader
        names: dict[str, set[str]] = {}
        for path in paths:
            names.setdefault(leader[path], set()).update(self.names[path])
        seen = {path: Statistics(asked) for path, asked in names.items()}
        apart = {path: Statistics(asked) for path, asked in names.items()}
        wanted = {place for path in paths for place in self.places[path]}
        for unit in range(self.stored, number):
            self.outputs.forget(unit)
        label = f"{self.stage}: {self.order.units[number]}"
        for index in self.context.progress.track(range(len(self.data)), total=len(self.data), label=label):
            self._pass(number, index, apart if index in self.held_out else seen, wanted)
        if self.order.replayable:
            for unit in range(self.stored, number):
                self.outputs.finish(unit)
                self._forget_layouts(unit)
            self.stored = number
            for unit in range(number):
                if self.order.last_reader[self.order.units[unit]] < number:
                    self.outputs.release(unit)
        return {path: seen[leader[path]] for path in paths}, {path: apart[leader[path]] for path in paths}

    def _pass(self, number: int, index: int, sums: Mapping[str, Statistics], wanted: Collection[int]) -> None:
        """Run one batch until every unit that is wanted or to be stored has been called as often as it is."""
        order, module, batch = self.order, self.model.module, self.data[index]
        store = range(self.stored, number) if order.replayable else range(0)
        calls = {unit: len(order.calls(batch, order.units[unit])) for unit in range(len(order.units))}
        left = {unit: calls[unit] for unit in (*store, *wanted) if calls[unit]}
        given: dict[int, list[list[Tensor]]] = {unit: [] for unit in store}
        sound: list[tuple[str, Tensor]] = []
        kept = unpadded(batch)

        def see(path: str, statistics: Statistics, layer: nn.Module, args: Any, kwargs: Any) -> None:
            x = input_of(args, kwargs)
            expert = module.get_submodule(path.rpartition(".")[0])
            x = expert.without_padding(x, kept) if isinstance(expert, Expert) else without_padding(x, kept)
            sound.append((f"{path} reads", finite_yet(x)))
            statistics.add(rows_read(layer, x))

        def called(unit: int, _: nn.Module, __: Any, output: Any) -> None:
            if unit in given:
                given[unit].append([tensor.detach().clone() for tensor in Shape.of(output)[1]])
            left[unit] -= 1
            if not any(left.values()):
                raise Enough

        if left:
            with ExitStack() as stack:
                replays = [unit for unit in range(self.stored) if calls[unit]] if order.replayable else []
                stack.enter_context(replaced(module, {order.units[u]: self._replay(u, index) for u in replays}))
                for path, statistics in sums.items():
                    layer = module.get_submodule(path)
                    hook = layer.register_forward_pre_hook(partial(see, path, statistics), with_kwargs=True)
                    stack.callback(hook.remove)
                for unit in left:
                    hook = module.get_submodule(order.units[unit]).register_forward_hook(partial(called, unit))
                    stack.callback(hook.remove)
                with torch.no_grad(), suppress(Enough):
                    self.run(batch)
            require_sound(self.model, batch, sound, samples_of(self.data, index))
            for unit in left:
                if left[unit]:
                    raise self._uneven(unit, index)
        for unit in store:
            self.outputs.save(unit, given[unit])

    def _forget_layouts(self, number: int) -> None:
        """Of a unit that runs no more: a kernel's layout takes as much memory as the codes that it is made of."""
        for part in self.model.module.get_submodule(self.order.units[number]).modules():
            layer: Any = part
            if hasattr(layer, "forget_layout"):
                layer.forget_layout()

    def _replay(self, unit: int, index: int) -> Callable[..., Any]:
        """Give back what a unit gave, call by call."""
        shapes = self.order.calls(self.data[index], self.order.units[unit])
        stored = self.outputs.load(unit, index, self.device)
        calls = iter(zip(shapes, stored, strict=True))

        def give(*_: Any, **__: Any) -> Any:
            shape, tensors = next(calls, (None, []))
            if shape is None:
                raise self._uneven(unit, index)
            return shape.filled(tensors)

        return give

    def _uneven(self, unit: int, index: int) -> ZooError:
        return ZooError(
            f"{self.stage}: on {samples_of(self.data, index)}, {self.order.units[unit]} runs another number of times "
            "than on other samples; calibrate with batch = 1."
        )

    # --- stopping and going on --------------------------------------------------------------------------------------

    def _save(self, path: Path, unit: Unit) -> None:
        """Keep the tensors of a unit that is done, where the stage may be resumed."""
        if self.context.checkpoint is None:
            return
        state = self.model.module.get_submodule(unit.path).state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        about = {"unit": unit.path, "table": json.dumps(unit.table)}
        replace_file(path, pieces_of(tensors, about), size=sum(tensor.nbytes for tensor in tensors.values()))

    def _put_back(self, unit: str) -> None:
        """Put what a unit has become into files, where the weights are there."""
        if self.offload:
            part = self.model.module.get_submodule(unit)
            self.offload.take(part)
            let_go(*part.parameters(), *part.buffers())

    def _resume(self, folder: Path, numbers: list[int]) -> int:
        """Take over the units that an earlier process has done; return how many."""
        done: list[tuple[str, Path]] = []
        for number in numbers:
            unit, path = self.order.units[number], folder / _file(number)
            if not path.exists():
                break
            try:
                self.table |= _table_in(path, unit)
            except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
                self.context.progress.say(
                    f"{path} is damaged ({one_line(error)}); the walk goes on from the unit before"
                )
                break
            done.append((unit, path))
        if not done:
            return 0
        if self.rebuild:
            self.rebuild(list(self.table))
        for unit, path in done:
            own = self.model.module.get_submodule(unit).state_dict()
            with torch.no_grad(), safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    own[name].copy_(file.get_tensor(name))
            self._put_back(unit)
        self.context.progress.say(f"going on after {done[-1][0]}")
        self._find_stored(numbers[len(done)] if len(done) < len(numbers) else len(self.order.units))
        return len(done)

    def _find_stored(self, number: int) -> None:
        """Find how many units have their outputs in files, with all of them that the next ones read; others run again."""
        for unit in range(number):
            needed = self.order.last_reader[self.order.units[unit]] >= number
            if not self.outputs.finished(unit, batches=len(self.data), needed=needed):
                break
            self.stored = unit + 1


def units_of(model: Model, layers: Iterable[str]) -> list[str]:
    """The blocks, outermost first, the layers outside them, and what else is to be seen; each module once."""
    anatomy = model.anatomy
    blocks = [block.path for stack in anatomy.stacks.values() for block in stack.blocks]
    outside = [path for paths in anatomy.layers.values() for path in paths]
    units: list[str] = []
    for path in (*sorted(blocks, key=lambda path: path.count(".")), *outside, *layers):
        if not any(inside(path, unit) for unit in units):
            units.append(path)
    return [paths[0] for paths in grouped_by_module(model.module, units)]


def _file(number: int) -> str:
    return f"unit-{number:04d}.safetensors"


def _table_in(path: Path, unit: str) -> dict[str, Record]:
    """The table of a unit that is done, whose file is whole.

    Raises:
        ValueError: it is of another unit.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    if about["unit"] != unit:
        raise ValueError(f"it holds {about['unit']}")
    table: dict[str, Record] = json.loads(about["table"])
    return table


def _told(seen: Statistics, layer: nn.Module) -> Record:
    """What a record says of what a layer read: how many tokens, how many inputs were never anything but zero, and whether it
    is starved: fewer tokens than inputs do not tell what each input is worth."""
    inputs = (features(layer) or (0, 0))[0]
    dead = {"dead": seen.dead} if seen.dead else {}
    return {"tokens": seen.tokens, **dead, **({"starved": True} if seen.tokens < inputs else {})}
