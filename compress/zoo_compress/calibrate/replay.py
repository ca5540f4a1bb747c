"""Run a model again with the stored outputs of some of its units in their place.

The model's own forward pass runs, so masks, positions, encoder states, image tokens and skips are its own; a unit that
is replayed gives back what it gave before and computes nothing. Outputs lie in files, since all of them together are
larger than what compressing a block takes.

What can be replayed is tried out on a batch (`Order.learn`): every unit must read the very same tensors when those
before it are replayed. A model that passes something between its units on other ways (a cache that layers share) fails
that, and is then run live each time: slower, and with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zoo.errors import ZooError
from zoo.system.writing import replace_file, sync, writing
from zoo.tensors.batch import Batch
from zoo_compress.calibrate.watch import input_of

Run = Callable[[Batch], Any]


class Enough(Exception):
    """Everything that was to be seen of a batch has been seen."""


@dataclass
class Shape:
    """How one call of a unit gives its output: tensors in a tree, and the constants beside them."""

    spec: TreeSpec
    constants: list[Any]  # ... where a tensor goes

    @classmethod
    def of(cls, output: Any) -> tuple[Shape, list[Tensor]]:
        leaves, spec = tree_flatten(output)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return cls(spec, [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]), tensors

    @property
    def plain(self) -> bool:
        return all(leaf is ... or leaf is None or isinstance(leaf, bool | int | float | str) for leaf in self.constants)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        rest = iter(tensors)
        return tree_unflatten([next(rest) if leaf is ... else leaf for leaf in self.constants], self.spec)


@dataclass
class Trace:
    """What one batch did: per unit, in the order of first calls, the shape of each output and a hash of each input."""

    shapes: dict[str, list[Shape]] = field(default_factory=dict)
    read: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    fed: dict[str, list[Any]] = field(default_factory=dict)  # by layer, what tells the tensors that it read


@dataclass
class Order:
    """The units of a model in the order in which they first run, and what it takes to replay them."""

    units: list[str]
    shapes: dict[Any, dict[str, list[Shape]]]  # by the kind of batch, by unit, by call
    last_reader: dict[str, int]  # the last unit that reads something of a unit's output, by number
    replayable: bool
    leader: dict[str, str]  # of every layer, the first that reads the very same tensors

    def calls(self, batch: Batch, unit: str) -> list[Shape]:
        return self.shapes[kind_of(batch)].get(unit, [])

    @classmethod
    def learn(
        cls, module: nn.Module, run: Run, data: Sequence[Batch], units: Sequence[str], layers: Sequence[str]
    ) -> Order:
        """Run one batch of each kind and see in which order the units run, how often, and who reads what."""
        kinds: dict[Any, Batch] = {}
        for batch in data:
            kinds.setdefault(kind_of(batch), batch)
        order: list[str] = []
        shapes, last_reader, replayable = {}, dict.fromkeys(units, -1), True
        fed: dict[str, list[Any]] = {path: [] for path in layers}
        for kind, batch in kinds.items():
            with torch.no_grad():
                run(batch)  # a family may try something out when it first runs a model, which counts as no call
            trace = _trace(module, run, batch, units, layers=layers)
            shapes[kind] = trace.shapes
            order += [unit for unit in trace.shapes if unit not in order]
            replayable &= list(trace.shapes) == [unit for unit in order if unit in trace.shapes]
            if replayable:
                small = first_sample(batch)  # since all its outputs are held at once
                kept = _trace(module, run, small, units, keep=True)
                if {unit: len(calls) for unit, calls in kept.shapes.items()} != {
                    unit: len(calls) for unit, calls in trace.shapes.items()
                }:
                    small, kept = batch, _trace(module, run, batch, units, keep=True)
                replayable = _readers(module, run, small, kept, order, last_reader)
            for path, tensors in fed.items():
                tensors.append(trace.fed.get(path, path))
        order += [unit for unit in units if unit not in order]
        firsts: dict[str, str] = {}
        leader = {path: firsts.setdefault(repr(tensors), path) for path, tensors in fed.items()}
        return cls(order, shapes, last_reader, replayable, leader)


def kind_of(batch: Batch) -> Any:
    """What tells batches apart that may run a model another way: which tensors there are, and how many samples."""
    return tuple((name, len(tensor) if tensor.dim() else 0) for name, tensor in sorted(batch.items()))


def first_sample(batch: Batch) -> Batch:
    """The first sample of a batch; the whole where not every tensor has one entry for each."""
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in batch.values()}
    return {name: tensor[:1] for name, tensor in batch.items()} if len(sizes) == 1 and 0 not in sizes else batch


def _trace(
    module: nn.Module, run: Run, batch: Batch, units: Sequence[str], *, layers: Sequence[str] = (), keep: bool = False
) -> Trace:
    """Run a batch and note what its units do; what they read and give is kept where that is asked for."""
    trace, alive = Trace(), _Alive()
    with ExitStack() as stack:
        for path in layers:
            hook = _feeder(trace, alive, path)
            stack.callback(module.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
        for unit in units:
            hook = _tracer(trace, alive, unit, keep=keep)
            handle = module.get_submodule(unit).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        with torch.no_grad():
            run(batch)
    return trace


class _Alive(list[Tensor]):
    """The tensors that the layers of a unit read while it runs: none takes the place of another in memory."""

    runs = 0  # of all units so far


def _feeder(trace: Trace, alive: _Alive, path: str) -> Callable[..., None]:
    def see(_: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        alive.append(x)
        place = (alive.runs, x.data_ptr(), tuple(x.shape), x.stride(), x._version)
        trace.fed.setdefault(path, []).append(place)

    return see


def _tracer(trace: Trace, alive: _Alive, unit: str, *, keep: bool) -> Callable[..., None]:
    def see(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        alive.clear()
        alive.runs += 1
        shape, tensors = Shape.of(output)
        trace.shapes.setdefault(unit, []).append(shape)
        if not keep:
            return
        trace.read.setdefault(unit, []).append(_hash((args, kwargs)))
        trace.outputs.setdefault(unit, []).append([tensor.detach().clone() for tensor in tensors])

    return see


def _hash(read: Any) -> str:
    digest = hashlib.sha256()
    for leaf in tree_flatten(read)[0]:
        if isinstance(leaf, Tensor):
            digest.update(str((leaf.dtype, leaf.shape)).encode())
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _readers(
    module: nn.Module, run: Run, batch: Batch, trace: Trace, order: Sequence[str], last_reader: dict[str, int]
) -> bool:
    """Note who reads each unit's output last; False where a unit reads something else once those before are replayed.

    Each unit in turn gives nan in place of what it gave, and whose input is no longer the same reads it. In most models
    that is the next unit alone, which takes few passes to find out.
    """
    if not all(shape.plain for shapes in trace.shapes.values() for shape in shapes):
        return False
    if _read(module, run, batch, trace) != trace.read:
        return False
    numbers = {unit: number for number, unit in enumerate(order)}
    if _is_chain(module, run, batch, trace):
        for unit, reader in pairwise(trace.shapes):
            last_reader[unit] = max(last_reader[unit], numbers[reader])
        return True
    for unit in trace.shapes:
        read = _read(module, run, batch, trace, spoiled={unit})
        changed = [numbers[name] for name in trace.shapes if read.get(name) != trace.read[name]]
        if changed and min(changed) <= numbers[unit]:  # a later call of an earlier unit
            return False
        whole = all(tensor.is_floating_point() for tensors in trace.outputs[unit] for tensor in tensors)
        last_reader[unit] = max([last_reader[unit], *changed] if whole else [len(order)])
    return True


def _is_chain(module: nn.Module, run: Run, batch: Batch, trace: Trace) -> bool:
    """Whether each unit reads what the one before it gives, and nothing of the others.

    The units whose number has a bit set give nan together, then those without it: any two differ in some bit, so that what
    reads of another unit than the one before it is found out.
    """
    units = list(trace.shapes)
    outputs = [tensor for calls in trace.outputs.values() for tensors in calls for tensor in tensors]
    if not all(tensor.is_floating_point() for tensor in outputs):
        return False
    for bit in range((len(units) - 1).bit_length()):
        for value in (0, 1):
            spoiled = {unit for number, unit in enumerate(units) if number >> bit & 1 == value}
            read = _read(module, run, batch, trace, spoiled=spoiled)
            changed = {unit for unit in units if read.get(unit) != trace.read[unit]}
            if changed != {unit for before, unit in pairwise(units) if before in spoiled}:
                return False
    return True


def _read(
    module: nn.Module, run: Run, batch: Batch, trace: Trace, *, spoiled: Collection[str] = ()
) -> dict[str, list[str]]:
    """Hashes of what each unit reads while all are replayed, some of them giving nan."""
    read: dict[str, list[str]] = {}

    def replay(unit: str) -> Callable[..., Any]:
        calls = zip(trace.shapes[unit], trace.outputs[unit], strict=True)

        def give(*args: Any, **kwargs: Any) -> Any:
            read.setdefault(unit, []).append(_hash((args, kwargs)))
            shape, tensors = next(calls)
            tensors = [tensor.clone() for tensor in tensors]
            if unit in spoiled:
                tensors = [torch.full_like(t, float("nan")) if t.is_floating_point() else t for t in tensors]
            return shape.filled(tensors)

        return give

    # whatever a model says to nan, or to a unit that left nothing behind: then the inputs differ, which is the answer
    with replaced(module, {unit: replay(unit) for unit in trace.shapes}), torch.no_grad(), suppress(Exception):
        run(batch)
    return read


@contextmanager
def replaced(module: nn.Module, forwards: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward."""
    changed: list[nn.Module] = []
    try:
        for path, forward in forwards.items():
            unit = module.get_submodule(path)
            if "forward" in vars(unit):
                raise ZooError(f"{path} has had its forward replaced; calibrate a model as it was loaded.")
            unit.forward = forward
            changed.append(unit)
        yield
    finally:
        for unit in changed:
            del vars(unit)["forward"]


@dataclass
class Stored:
    """Where a tensor lies in a file, and how it lay in memory: a convolution rounds otherwise where that is another."""

    start: int
    shape: list[int]
    strides: list[int]
    dtype: str

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=getattr(torch, self.dtype), device=device)


class Outputs:
    """The outputs of units in a folder, a file for each unit; of those that no one reads again, their shapes alone."""

    def __init__(self, folder: Path, *, lasting: bool) -> None:
        self.folder, self.lasting = folder, lasting  # whether another process may go on with them
        self.stored: dict[int, list[list[list[Stored]]]] = {}  # by unit, batch, call

    def save(self, unit: int, calls: list[list[Tensor]]) -> None:
        """Add what the calls of the next batch gave."""
        path, batches = self._file(unit), self.stored.setdefault(unit, [])
        batches.append([])
        with writing(path), path.open("ab" if len(batches) > 1 else "wb") as file:
            for call in calls:
                batches[-1].append([])
                for tensor in call:
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    place = Stored(file.tell(), list(tensor.shape), list(tensor.stride()), dtype)
                    batches[-1][-1].append(place)
                    file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def forget(self, unit: int) -> None:
        """Begin a unit again; what a killed process wrote of it goes first."""
        self.stored.pop(unit, None)
        self._marker(unit).unlink(missing_ok=True)
        self._file(unit).unlink(missing_ok=True)

    def finish(self, unit: int) -> None:
        """Mark the outputs of a unit as complete."""
        if not self.lasting:
            return
        if self._file(unit).exists():  # a unit that no batch calls has none
            sync(self._file(unit))
        told = [[[vars(place) for place in call] for call in calls] for calls in self.stored[unit]]
        replace_file(self._marker(unit), json.dumps(told))

    def finished(self, unit: int, *, batches: int, needed: bool) -> bool:
        """Whether an earlier process finished a unit, and its file is there where it is needed; reads what was told."""
        if not self._marker(unit).exists() or (needed and not self._file(unit).exists()):
            return False
        told = json.loads(self._marker(unit).read_text())
        self.stored[unit] = [[[Stored(**place) for place in call] for call in calls] for calls in told]
        return len(told) == batches

    def release(self, unit: int) -> None:
        """Remove the file of a unit that no one reads again."""
        self._file(unit).unlink(missing_ok=True)

    def load(self, unit: int, batch: int, device: torch.device) -> list[list[Tensor]]:
        """Return the output tensors of each call, laid out as they were; zeros where they have been released."""
        calls = [[(place, place.empty(device)) for place in call] for call in self.stored[unit][batch]]
        path = self._file(unit)
        with path.open("rb") if path.exists() else nullcontext() as file:
            for place, tensor in (pair for call in calls for pair in call):
                if file is None:
                    tensor.zero_()
                    continue
                file.seek(place.start)
                content = bytearray(file.read(tensor.nbytes))
                if content:
                    tensor.copy_(torch.frombuffer(content, dtype=tensor.dtype).view(tensor.shape))
        return [[tensor for _, tensor in call] for call in calls]

    def _file(self, unit: int) -> Path:
        return self.folder / f"outputs-{unit:04d}.bin"

    def _marker(self, unit: int) -> Path:
        return self.folder / f"outputs-{unit:04d}.json"
