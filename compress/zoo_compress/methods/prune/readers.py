"""The layers that read what is cut (down of a feed-forward layer, o of attention): which of its units stay, and the refit.

They are taken block by block, each by what it reads once those before it have been cut. The refit is made on three
quarters of the calibration batches and kept only where it lowers the error of the layer's output on the others.
"""

# O out, I in, U units, W width of a unit

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.anatomy.modules import resolve, weight_out_in
from zoo.anatomy.parts import Part
from zoo.errors import Refused
from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.statistics import Statistics, output_error
from zoo_compress.calibrate.watch import Batches
from zoo_compress.methods.prune.refit import contributions, refitted

HELD_OUT = 0.25  # of the calibration batches


@dataclass(frozen=True)
class Reader:
    """A layer, in the units along its inputs, some of which go."""

    part: Part
    choose: Callable[[Tensor], Tensor]  # the units that stay, from the scores of all


def cut_readers(
    model: Model, readers: Iterable[Reader], data: Batches, *, refit: bool, context: Context, stage: str
) -> tuple[dict[str, Tensor], dict[str, Record]]:
    """Choose the units that stay by what they put out, set the weights of the others to zero, and refit those of the rest.

    Returns:
        By path of the reader the units that stay, and what the record says of each layer.

    Raises:
        Refused: the data does not reach a reader.
    """
    by_module = {id(resolve(model.module, reader.part.path)): reader for reader in readers}
    paths = {reader.part.path: reader for reader in by_module.values()}
    share = max(HELD_OUT, 1 / len(data)) if refit and len(data) > 1 else 0.0
    if refit and not share:
        context.progress.say(
            f"{stage}: nothing is refitted, since there is one calibration batch and none to judge it by"
        )
    walk = Walk(model, paths, data, statistics=("gram",), context=context, stage=stage, held_out=share)
    for unit in walk:
        for path, seen in unit.layers.items():
            if seen.tokens:
                unit.table[path] |= _cut(model, paths[path], seen, unit.held_out.get(path))
    units = {path: torch.tensor(row.pop("kept")) for path, row in walk.table.items() if "kept" in row}
    for path in paths:
        if path not in units:
            raise Refused(f"{stage}: {path} is not used by the calibration data; use magnitude instead.")
    return units, walk.table


@torch.no_grad()
def _cut(model: Model, reader: Reader, seen: Statistics, held_out: Statistics | None) -> Record:
    """Cut one reader; "error" is that of its output on the batches held out, or on all where none are."""
    part, weight_OI = reader.part, weight_out_in(model.module.get_submodule(reader.part.path))
    assert seen.gram is not None
    inputs_UW = part.indices(torch.arange(part.units)).view(part.units, part.width)
    units = reader.choose(contributions(weight_OI, seen.gram, inputs_UW).cpu())
    kept_K = part.indices(units)
    cut_OI = torch.zeros_like(weight_OI)
    cut_OI[:, kept_K] = weight_OI[:, kept_K]
    about: Record = {"kept": units.tolist(), "error": output_error(weight_OI, cut_OI, seen.gram)}
    if held_out is not None and held_out.gram is not None and held_out.tokens:
        fitted_OI = cut_OI.clone()
        fitted_OI[:, kept_K] = refitted(weight_OI, seen.gram, kept_K).to(weight_OI.dtype)
        before, after = (output_error(weight_OI, other_OI, held_out.gram) for other_OI in (cut_OI, fitted_OI))
        about |= {"error": min(before, after), "error_without_refit": before, "refit": after < before}
        cut_OI = fitted_OI if after < before else cut_OI
    weight_OI.copy_(cut_OI)
    return about
