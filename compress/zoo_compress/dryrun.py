"""Dry runs: code runs on tensors that have shapes and no memory, and what they would hold at once is counted.

So the memory of a training step follows from the step itself, whatever the modality, the losses and the libraries below.
Whole numbers (tokens, labels, masks) stay real, since shapes can depend on them: how many tokens have a label, where the
image tokens are. What a kernel takes inside itself, and what an allocator takes for its order, is not seen.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from zoo.compressor import Compressor
from zoo.data.dataset import Dataset
from zoo.errors import ZooError, one_line
from zoo.model.model import Model
from zoo.model.trial import UNFIT, at_once, in_steps, refusal
from zoo.tensors.batch import Batch, generators

aten: Any = torch.ops.aten
# of tensors, from nothing
MAKERS = {aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.empty_strided}
INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
}
UNKNOWN = (RuntimeError, NotImplementedError, LookupError, TypeError, ValueError, AttributeError)  # what a forward pass
# raises that asks for a value where there is none
# what is raised where shapes do not say what an operation gives
NOT_TOLD = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    NotImplementedError,
)


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs what is inside a `with` block dry; `peak` is the most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.alive: dict[int, weakref.ref[Any]] = {}  # storages by address
        self.now = self.peak = 0

    def shadow(self, model: Model, *, dtype: torch.dtype | None = None) -> Model:
        """A copy of a model that is run dry on the CPU; what was shared stays shared.

        Args:
            dtype: of its float parameters, and of the buffers that are computed beside them.
        """
        module = copy.deepcopy(model.module)
        twins: dict[int, Any] = {}
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                tensors: dict[str, Any] = store
                for name, old in tensors.items():
                    if old is not None and id(old) not in twins:
                        follows = isinstance(old, nn.Parameter) or name in part._non_persistent_buffers_set
                        twins[id(old)] = self._twin(old, dtype if follows else None)
                    tensors[name] = twins.get(id(old))
        return replace(model, module=module)

    def batch(self, batch: Batch) -> Batch:
        """A batch whose floats are dry."""
        return {
            name: self._counted(self.fake.from_tensor(t)) if t.is_floating_point() else t for name, t in batch.items()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        flat, spec = tree_flatten((args, kwargs or {}))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            out = self._dry(func, flat, spec)
        elif not tensors and func.overloadpacket in MAKERS and _makes_floats(kwargs or {}):
            with self.fake:
                out = func(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, Tensor):
                self._counted(value)
        return out

    def _dry(self, func: Any, flat: list[Any], spec: Any) -> Any:
        if func is aten._local_scalar_dense.default:
            return {torch.bool: True}.get(flat[0].dtype, 1)  # nobody knows; such as whether all is finite
        if func is aten._grouped_mm.default:  # torch's own shapes of it are for bfloat16 alone, though float32 runs
            with self.fake:
                return torch.empty(_grouped_shape(*flat[:3]), dtype=flat[0].dtype)
        if func.overloadpacket in INDEXING:
            args, kwargs = tree_unflatten(flat, spec)
            flat, spec = tree_flatten(((args[0], _where_true(args[1]), *args[2:]), kwargs))
        flat = [
            self.fake.from_tensor(value) if isinstance(value, Tensor) and not isinstance(value, FakeTensor) else value
            for value in flat
        ]
        args, kwargs = tree_unflatten(flat, spec)
        return func(*args, **kwargs)

    def _twin(self, old: Tensor, dtype: torch.dtype | None) -> Tensor:
        wanted = dtype if dtype and old.is_floating_point() else old.dtype
        with self.fake:
            new = torch.empty(old.shape, dtype=wanted)
        self._counted(new)
        return nn.Parameter(new, requires_grad=new.is_floating_point()) if isinstance(old, nn.Parameter) else new

    def _counted(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage until it is freed, once however many tensors view it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            del self.alive[key]
            self.now -= size

        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, freed)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor


def _makes_floats(kwargs: dict[str, Any]) -> bool:
    return bool((kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point)


def _grouped_shape(left: Tensor, right: Tensor, ends: Tensor) -> tuple[int, ...]:
    """The shape of a grouped product, in which rows of one matrix each meet one of several."""
    if left.dim() == right.dim() == 2:
        return len(ends), left.shape[0], right.shape[1]
    return (
        (left.shape[-2], right.shape[-1])
        if left.dim() + right.dim() == 5
        else (left.shape[0], left.shape[1], right.shape[2])
    )


def _where_true(indices: Sequence[Any]) -> list[Any]:
    """Indices with every real mask as the places where it is true."""
    expanded: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        expanded += index.nonzero(as_tuple=True) if mask else [index]
    return expanded


@contextmanager
def told_from_shapes(model: Model, what: str) -> Iterator[None]:
    """Say of what cannot be run dry that it cannot.

    Raises:
        ZooError: names the model and the reason.
    """
    try:
        with quiet_fakes():
            yield
    except ZooError:
        raise
    except UNKNOWN as error:
        raise ZooError(
            f"the memory of {what} {model.spec.name} cannot be told from shapes ({one_line(error)[:160]})"
        ) from error


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from printing the traceback of what is said elsewhere in a sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


# --- whether a model runs -----------------------------------------------------------------------------------------------


def runs_dry(before: Model, after: Model, compressor: Compressor) -> bool:
    """Whether a skeleton runs after a stage; False where shapes do not tell.

    Raises:
        Refused: it ran before the stage, and does not after it.
    """
    for way in (in_steps, at_once):
        error, shadow = _run_dry(after, way)
        if error is None:
            return True
        if _lacks_what_was_there(error, shadow, before):
            raise refusal(shadow, compressor, error) from error
        if _run_dry(before, way)[0] is None:
            if isinstance(error, NOT_TOLD):
                return False
            raise error if isinstance(error, ZooError) else refusal(shadow, compressor, error) from error
    return False


def _lacks_what_was_there(error: Exception, after: Model, before: Model) -> bool:
    """Whether a pass asked a module that the stage put in for what the one before it had: no shape can mend that."""
    parts, former = after.module.named_modules(), dict(before.module.named_modules())
    path = next((path for path, part in parts if part is getattr(error, "obj", None)), None)
    if not isinstance(error, AttributeError) or path not in former or type(former[path]) is type(error.obj):
        return False
    return error.name is not None and hasattr(former[path], error.name)


def _run_dry(model: Model, way: Callable[[Model], Any]) -> tuple[Exception | None, Model]:
    """What ended a dry run, and the copy that was run."""
    run = DryRun()
    shadow = run.shadow(model)
    try:
        with quiet_fakes(), run:
            way(shadow)
    except (ZooError, *UNFIT) as error:
        return error, shadow
    return None, shadow


# --- windows of the data ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """What a stage reads: the largest of a few batches of real data, and the bytes that all windows keep beside the records."""

    batch: Batch
    kept_bytes: int


def windows_of(model: Model, data: Dataset | None, *, batch: int, length: int) -> Windows:
    """Cut a few windows of real data, or make random ones where the model has no tokenizer yet.

    A skeleton will do: its windows are real.
    """
    model = DryRun().shadow(model)
    records = _spread(data, batch, length=length) if data is not None else None
    try:
        if records is None:
            raise ZooError("there is no data")
        windows = model.family.windows(model, records, length=length)
        most = min(4, -(-len(windows) // batch))
        groups = [[windows[(start + i * most) % len(windows)] for i in range(batch)] for start in range(most)]
        batches = [
            model.family.draw(model, model.family.collate(model, group), generators(0, range(batch)))
            for group in groups
        ]
    except ZooError:
        made = model.family.example(model, batch=batch, size=length)
        return Windows({"labels": made["input_ids"], **made} if "input_ids" in made else made, 0)
    share = sum(_size(record) for record in data or ()) / max(1, sum(map(_size, records)))
    kept_bytes = sum(value.nbytes for value in vars(windows).values() if isinstance(value, Tensor))
    return Windows(max(batches, key=_numbers), round(kept_bytes * share))


def _spread(data: Dataset, batch: int, *, length: int) -> Dataset:
    """Records spread over the data: enough for a few batches, or enough text for one."""
    count = min(len(data), 4 * batch)
    picked, characters = [], 0
    for i in range(count):
        picked.append(data[i * len(data) // count])
        characters += len(str(picked[-1].fields.get("text", "")))
        if characters > 16 * length * batch:
            break
    return Dataset(data.name, picked)


def _size(record: Any) -> int:
    return 1 + len(str(record.fields.get("text", "")))


def _numbers(batch: Batch) -> int:
    return sum(tensor.numel() for tensor in batch.values())


def forward_bytes(model: Model, batch: Batch) -> int:
    """Memory of one forward pass up to the head without a gradient, on top of the weights: what calibration runs.

    Raises:
        ZooError: the forward pass depends on values, so that shapes do not suffice.
    """
    run = DryRun()
    with told_from_shapes(model, "running"):
        shadow = run.shadow(model)
        before, inputs = run.now, run.batch(batch)
        with run, torch.no_grad():
            model.family.forward_body(shadow, inputs)
    return run.peak - before


@dataclass(frozen=True)
class Calibration:
    """What calibrating takes: memory on top of the weights, and the places of a batch that a linear layer reads."""

    bytes: int
    tokens: int


def calibration(model: Model, options: Any, context: Any) -> Calibration:
    """Tell from shapes what the calibration of a stage holds: all of its batches, and one forward pass."""
    windows = windows_of(model, context.data.get(options.data), batch=options.batch, length=options.length)
    batch_bytes = sum(tensor.nbytes for tensor in windows.batch.values())
    data_bytes = -(-options.samples // options.batch) * batch_bytes + windows.kept_bytes
    return Calibration(
        data_bytes + forward_bytes(model, windows.batch), max(t.shape[:2].numel() for t in windows.batch.values())
    )
