"""The health of a model: which tensor holds nan or infinity, and which layer makes such values of finite ones.

Nothing is checked while a model is loaded, whose weights stay mapped until they are used; what a stage starts from and
leaves, what is saved, generated or measured is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from zoo.errors import ZooError
from zoo.tensors.finite import all_finite, is_sound

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.tensors.batch import Batch


REPAIR = "Load the weights anew or repair them."


def require_finite(model: Model, *, what: str, remedy: str = REPAIR) -> None:
    """Refuse a model whose weights hold nan or infinity; skeletons are not looked at.

    Args:
        what: who refuses, or what happened: "quantize.int8", "tiny-code cannot be saved".

    Raises:
        ZooError: names the tensor, how many of its values are damaged and where the first is.
    """
    if problem := damage(model):
        raise ZooError(f"{what}: {problem}. {remedy}")


def require_finite_once(model: Model, *, what: str) -> None:
    """As `require_finite`, but look at weights that have not changed since only once."""
    tensors = (*model.module.parameters(), *model.module.buffers())  # what else they hold, such as codes, is sound
    state = tuple(
        (t.data_ptr(), 0 if t.is_inference() else t._version)
        for t in tensors
        if t.is_floating_point() and not t.is_meta
    )
    if _seen_sound.get(model.module) != state:
        require_finite(model, what=what)
        _seen_sound[model.module] = state


_seen_sound: WeakKeyDictionary[Any, tuple[tuple[int, int], ...]] = WeakKeyDictionary()


def require_finite_outputs(model: Model, outputs: torch.Tensor, batch: Batch, *, of: str | Sequence[str]) -> None:
    """Refuse outputs that hold nan or infinity.

    Args:
        of: what they are outputs for, or one name for each of them, such as where a record is from.

    Raises:
        ZooError: names what they are for, and the tensor or the layer that is to blame.
    """
    import torch

    if all_finite(outputs):
        return
    if not isinstance(of, str):
        wrong = (~torch.isfinite(outputs.float())).reshape(len(outputs), -1).any(1).tolist()
        names = list(dict.fromkeys(name for name, bad in zip(of, wrong, strict=True) if bad))
        of = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise ZooError(f"{model.spec.name} gives nan or infinity for {of}: {cause(model, batch)}.")


def damage(model: Model) -> str:
    """Say which tensor of a model holds nan or infinity, how much of it and where first, or return ""."""
    import torch

    from zoo.tensors.offload import let_go

    bad = []
    for name, tensor in model.tensors().items():
        if not is_sound(tensor):
            bad.append(name)
        let_go(tensor)
    if not bad:
        return ""
    name, tensor = bad[0], model.tensors()[bad[0]].detach()
    wrong = ~torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
    first = wrong.nonzero()[0].tolist()
    count = int(wrong.sum())
    values = "1 value that is" if count == 1 else f"{count:,} values that are"
    more = f"; {len(bad) - 1} more tensors hold some" if len(bad) > 1 else ""
    return f"{name} {tuple(tensor.shape)} holds {values} not finite, the first ({float(tensor[tuple(first)])}) at {first}{more}"


def cause(model: Model, batch: Batch | None = None) -> str:
    """Say in a clause why a model's outputs on a batch are not finite."""
    return blame(model, batch) or "its weights are finite, so values overflow on the way"


def blame(model: Model, batch: Batch | None = None) -> str:
    """Name the damaged tensor, or the first layer where values overflow on `batch`; "" where neither is to blame."""
    import torch

    if (problem := damage(model)) or batch is None:
        return problem
    seen: list[str] = []
    handles = [part.register_forward_hook(_noting(path, seen)) for path, part in model.module.named_modules() if path]
    try:
        with torch.no_grad():
            model.family.forward(model, batch)
    except Exception:  # the layers that ran have been seen
        pass
    finally:
        for handle in handles:
            handle.remove()
    return (
        f"its weights are finite, and the first layer whose output is not is {seen[0]} (in {model.dtype})"
        if seen
        else ""
    )


def _noting(path: str, seen: list[str]) -> Any:
    def note(_module: Any, _args: Any, output: Any) -> None:
        if not seen and not all(all_finite(tensor) for tensor in float_tensors(output)):
            seen.append(path)

    return note


def float_tensors(output: Any) -> Iterator[torch.Tensor]:
    """The float tensors of whatever a layer returns."""
    if hasattr(output, "is_floating_point"):
        yield output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    for value in values:
        yield from float_tensors(value)
