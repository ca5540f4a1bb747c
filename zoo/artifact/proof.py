"""Proof, before an artifact is put in place, that what was written is the model in memory: bit for bit what loading makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.artifact import weights
from zoo.errors import ZooError, reason
from zoo.model.building import cast_named
from zoo.model.health import float_tensors
from zoo.tensors.alignment import align, misaligned
from zoo.tensors.offload import let_go

if TYPE_CHECKING:
    from zoo.model.model import Model
    from zoo.tensors.batch import Batch

SMALL = 200_000_000  # bytes of a model that is also run


def other_dtypes(model: Model, fresh: Model) -> dict[str, str]:
    """The float tensors that have another dtype in a model than in one that was just built: name -> dtype."""
    built = dict(_tensors(fresh.module))
    return {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in _tensors(model.module)
        if name in built and tensor.dtype != built[name].dtype and tensor.is_floating_point()
    }


def require_same(model: Model, fresh: Model, path: Path, dtypes: Mapping[str, str]) -> None:
    """Compare a model with what loading makes of the files in `path`, a tensor at a time.

    What is no tensor is compared by running both, where the model is small and on the CPU.

    Args:
        fresh: the model as loading builds it, without weights; it is filled with them where it is run.
        dtypes: as they are recorded, by name.

    Raises:
        ZooError: names the first tensor, or layer, that differs.
    """
    cast_named(fresh.module, dtypes)
    mine = model.tensors()
    for name, tensor in weights.read(fresh, path, empty=_in_memory):
        _require_same_tensor(model, name, mine[name], tensor)
        let_go(mine[name])
    differing = _differing_computed(model, fresh)
    if (model.bytes <= SMALL or differing) and model.device.type == "cpu":
        weights.fill(fresh, path)
        try:
            _require_same_outputs(model, fresh)
        except ZooError:
            _require_same_computed(model, fresh)  # which says what it comes from, where it is a buffer
            raise
    if differing:  # a class may compute it anew for the size of each input: then both have run on the same
        _require_same_computed(model, fresh)


def _in_memory(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def _require_same_tensor(model: Model, name: str, mine: torch.Tensor, loaded: torch.Tensor) -> None:
    if (mine.dtype, mine.shape) != (loaded.dtype, loaded.shape):
        theirs = f"{loaded.dtype} {tuple(loaded.shape)}".removeprefix("torch.")
        problem = f"it would load as {theirs}"
    elif not same_bits(mine, loaded):
        problem = "it would load with other values"
    else:
        return
    ours = f"{mine.dtype} {tuple(mine.shape)}".removeprefix("torch.")
    raise ZooError(f"{model.spec.name} cannot be saved: {name} is {ours} in memory, and {problem}.")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of a shape and dtype hold the same bits, nan and the sign of zero included."""
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.itemsize, torch.uint8))


def _differing_computed(model: Model, fresh: Model) -> bool:
    """Whether a buffer that is computed is not as in a model that was just built."""
    try:
        _require_same_computed(model, fresh)
    except ZooError:
        return True
    return False


def _require_same_computed(model: Model, fresh: Model) -> None:
    """Compare the buffers that are not saved, but computed when a model is built."""
    mine, built = (dict(computed_buffers(one.module)) for one in (model, fresh))
    for name in sorted(mine.keys() ^ built.keys()):
        raise ZooError(
            f"{model.spec.name} cannot be saved: its buffer {name} is not saved, and "
            f"{'absent' if name in mine else 'there'} when the model is built anew."
        )
    for name, buffer in mine.items():
        if _follows_the_text(name, built):
            continue
        theirs = built[name]
        if buffer.dim() and theirs.dim() and len(buffer) > len(theirs):  # a table of positions, grown by a long text
            buffer = buffer[: len(theirs)]
        _require_same_tensor(model, name, buffer, theirs)


def _follows_the_text(name: str, buffers: Mapping[str, Any]) -> bool:
    """Whether a buffer holds the rotary frequencies of the latest text; its class keeps those it begins with beside it."""
    return f"{name.removesuffix('inv_freq')}original_inv_freq" in buffers and name.endswith("inv_freq")


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that has a dtype: what is saved, and the buffers that are not."""
    yield from module.state_dict(keep_vars=True).items()
    yield from computed_buffers(module)


def computed_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, part in module.named_modules():
        for name in part._non_persistent_buffers_set:
            if (buffer := part._buffers.get(name)) is not None:
                yield f"{path}.{name}".lstrip("."), buffer


# --- running ----------------------------------------------------------------------------------------------------------


def _require_same_outputs(model: Model, loaded: Model) -> None:
    """Run both on the smallest input that the family has, such as two tokens; the loaded one first, on trial."""
    if next(misaligned(model.module), None) is not None:  # on which the last bits depend; loading aligns
        model = model.copy()
        align(model.module)
    try:
        batch = model.family.example(model, batch=1, size=2)
    except Exception:  # of a family that makes none: `zoo plugins check` says so
        return
    with _evaluating(model.module, loaded.module):
        theirs, reason = _output(loaded, batch)
        _require_unchanged(model, loaded)
        ours, _ = _output(model, batch)
        if ours is None or (theirs is not None and _same_outputs(ours, theirs)):
            return  # what does not run in memory either is not for saving to judge
        again, _ = _output(model, batch)
        if again is None or not _same_outputs(ours, again):  # it is another each time
            return
        layer = _first_difference(model, loaded, batch)
    what = f"not run ({reason})" if theirs is None else f"give other outputs, first at {layer or 'its end'}"
    raise ZooError(
        f"{model.spec.name} cannot be saved: loaded again it would {what}, though every tensor is the same; "
        "something that is no tensor was changed, which no stage recorded."
    )


def _output(model: Model, batch: Batch) -> tuple[torch.Tensor | None, str]:
    """What a model gives for a batch, or why it does not run; drawn alike where it draws."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return model.family.forward(model, batch), ""
        except Exception as error:  # whatever a class says of what does not fit
            return None, reason(error)


def _same_outputs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and same_bits(one, other)


def _require_unchanged(model: Model, run: Model) -> None:
    """Refuse a model whose forward pass changes its own weights: saved after one, it would load as another model."""
    after = run.tensors()
    for name, tensor in model.tensors().items():
        if not _same_outputs(tensor, after[name]):
            raise ZooError(
                f"{model.spec.name} cannot be saved: a forward pass of {type(model.module).__name__} changes its own {name}, "
                "so what is saved depends on how often it has run."
            )


def _first_difference(model: Model, loaded: Model, batch: Batch) -> str:
    """The first layer whose output is not the same in both."""
    ours, theirs = (_layers(one, batch) for one in (model, loaded))
    return next((path for path, outputs in ours if (path, outputs) not in theirs), "")


def _layers(model: Model, batch: Batch) -> list[tuple[str, str]]:
    """Every layer by path, in the order in which they end, with a hash of what it gives."""
    seen: list[tuple[str, str]] = []

    def note(path: str, output: Any) -> None:
        bits = [_bits(tensor).numpy().tobytes() for tensor in float_tensors(output)]
        seen.append((path, hashlib.sha256(b"".join(bits)).hexdigest()))

    handles = [
        part.register_forward_hook(lambda _part, _inputs, output, path=path: note(path, output))
        for path, part in model.module.named_modules()
        if path
    ]
    try:
        _output(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """As they are when loaded: without dropout, and with running statistics as they stand."""
    parts = [part for module in modules for part in module.modules()]
    before = [part.training for part in parts]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.training = training
