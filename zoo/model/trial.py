"""Trials: a model that a stage changed is run, at once and step by step, before anything is saved.

An architecture may read a weight or a size in a way that no one here knows, and keep by a block's number what it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import Refused, ZooError, reason
from zoo.system.memory import ran_out

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.compressor import Compressor
    from zoo.model.model import Model

# what the forward pass of a model raises that does not fit together
UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)
# Of the largest output: the same sums in another order; where they are rounded to half precision, as in kernels for packed
# weights, an expert may be chosen by a hair.
CLOSE, CLOSE_IN_HALF = 1e-3, 0.1

# How a model runs: not at all, at once alone, step by step too, and then with the same outputs.
Runs = Literal["not", "at once", "in steps", "alike"]
Run = Callable[["Model"], "tuple[Tensor, Tensor]"]


def at_once(model: Model) -> tuple[Tensor, Tensor]:
    """Run a model on a few made-up tokens; return its outputs, twice."""
    import torch

    with torch.no_grad():
        outputs = model.family.forward(model, model.family.example(model, batch=1, size=4))
    return outputs, outputs


def in_steps(model: Model) -> tuple[Tensor, Tensor]:
    """Return what a model computes at once, and what it computes step by step."""
    import torch

    with torch.no_grad():
        return model.family.trial(model, model.family.example(model, batch=1, size=4))


def runs(model: Model) -> Runs:
    """Say how a model runs; never alike where its family does not use the steps, which may be near by chance."""
    try:
        whole, stepwise = in_steps(model)
        used = whole is stepwise or model.family.caches(model)
        return "alike" if used and _agree(model, whole, stepwise) else "in steps"
    except (ZooError, *UNFIT):
        pass
    try:
        at_once(model)
    except (ZooError, *UNFIT):
        return "not"
    return "at once"


def require_running(model: Model, compressor: Compressor, *, before: Runs) -> None:
    """Refuse a model that after a stage no longer runs as it ran before it.

    Raises:
        Refused: names the stage, the model's class, the reason and a remedy.
    """
    if before == "not":
        return
    try:
        with _without_layouts(model.module):
            outputs = (at_once if before == "at once" else in_steps)(model)
    except UNFIT as error:
        if ran_out(error):
            raise
        raise refusal(model, compressor, error) from error
    if before == "alike" and not _agree(model, *outputs):
        raise Refused(
            f"{compressor.name} does not fit {type(model.module).__name__}: token by token the model it leaves computes "
            f"something else than at once. {compressor.remedy('')}"
        )


@contextmanager
def _without_layouts(module: nn.Module) -> Iterator[None]:
    """Where weights are on disk, drop what a kernel makes of a packed layer's codes once it has run: for all layers together it
    takes as much memory as the packed model.
    """
    from zoo.tensors.offload import is_offloaded

    offloaded = any(map(is_offloaded, module.parameters()))
    packed: list[Any] = [part for part in module.modules() if offloaded and hasattr(part, "forget_layout")]
    hooks = [part.register_forward_hook(lambda part, *_: part.forget_layout()) for part in packed]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def refusal(model: Model, compressor: Compressor, error: Exception) -> Refused:
    """What is said of a stage after which the model's forward pass ends with an error."""
    path = _path(model.module, getattr(error, "obj", None))
    where = f"{path}: " if path else ""
    return Refused(
        f"{compressor.name} does not fit {type(model.module).__name__}: the model it leaves does not run "
        f"({where}{reason(error)}). {compressor.remedy(path)}"
    )


def _agree(model: Model, whole: Tensor, stepwise: Tensor) -> bool:
    import torch

    packed = any(hasattr(part, "zoo_packed") for part in model.module.modules())
    half = getattr(torch, model.dtype).itemsize <= 2  # which logits do not show: a reader widens them
    close = CLOSE_IN_HALF if packed or half else CLOSE
    furthest = float((whole.double() - stepwise.double()).abs().max())
    return not furthest > close * max(float(whole.double().abs().max()), 1e-9)  # nan is another check's matter


def _path(module: nn.Module, part: object) -> str:
    """Where in `module` the part is that lacks an attribute which was asked for."""
    return next((path for path, child in module.named_modules() if child is part), "")
