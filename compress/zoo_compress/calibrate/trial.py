"""A trial run of a model that was just changed: an architecture may read a weight or a size in a way not known here."""

from __future__ import annotations

import torch
from torch import nn

from zoo.errors import Refused
from zoo.model.model import Model


def require_running(model: Model, *, stage: str, what: str, remedy: str, skip: bool = False) -> None:
    """Run the model once on a few random tokens, or refuse it where its forward pass fails; skeletons are not run.

    Args:
        what: what the model is now: "pruned", "packed".
        remedy: what to do; with `skip` this is said only where the module that does not fit is not known by name.

    Raises:
        Refused: names the model's class, the reason and the remedy.
    """
    if any(tensor.is_meta for tensor in model.tensors().values()):
        return
    try:
        with torch.no_grad():
            model.family.forward(model, model.family.example(model, batch=1, size=4))
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        path = _path(model.module, getattr(error, "obj", None)) if skip else ""
        if path:
            remedy = f"Leave it out with skip = ['*.{path.rpartition('.')[2]}']."
        raise Refused(
            f"{stage} does not fit {type(model.module).__name__}: the {what} model does not run "
            f"({f'{path}: ' if path else ''}{reason}). {remedy}"
        ) from error


def _path(module: nn.Module, part: object) -> str:
    """Where in `module` the part is that lacks an attribute which was asked for."""
    return next((path for path, child in module.named_modules() if child is part), "")
