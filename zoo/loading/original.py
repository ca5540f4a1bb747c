"""The original of a compressed model, for those who compare the two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import RequestError, ZooError
from zoo.model.provenance import weights_digest

if TYPE_CHECKING:
    from zoo.model.model import Model


def original_of(model: Model, *, evaluator: str) -> Model:
    """The model that the first stage began with, on the same device; without stages, the model itself.

    Args:
        evaluator: what compares, for the words of an error.

    Raises:
        RequestError: it is not known, cannot be had, or has changed since.
    """
    from zoo.loading.load import load

    source = model.source
    if not source or len(model.lineage) <= source["stages"]:
        return model
    name = source["name"]
    try:
        original = load(name, weights=source["weights"], dtype=source["dtype"] or None, device=str(model.device))
    except ZooError as error:
        raise RequestError(f"{evaluator} compares with the original, {name}, which cannot be loaded: {error}") from None
    if model.device.type == "meta":
        return original
    if source["sha256"] and weights_digest(Path(original.origin)) != source["sha256"]:
        raise RequestError(
            f"{evaluator} compares with the original, {name}, whose files are no longer those that this model was made of."
        )
    if source["rounded"]:
        original.stored = source["rounded"]
        original.round()
    return original
