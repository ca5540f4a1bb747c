"""What a walk takes, told from shapes: memory beside the weights, and disk for the outputs that wait to be read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from zoo.anatomy.modules import grouped_by_module, inside, output_axis
from zoo.model.context import Context
from zoo.model.model import Model
from zoo_compress.calibrate.blocks import units_of
from zoo_compress.calibrate.replay import Shape
from zoo_compress.calibrate.statistics import ROWS
from zoo_compress.calibrate.watch import CalibrationOptions
from zoo_compress.dryrun import DryRun, calibration, told_from_shapes, windows_of


def memory_bytes(
    model: Model, layers: Collection[str], names: Collection[str], options: CalibrationOptions, context: Context
) -> int:
    """Memory of a walk beside the weights: its batches, one pass, and the sums of the unit that has most of them."""
    sums = [
        sum(_sum_bytes(_inputs(model, path), names) for path in _distinct(model, unit, layers))
        for unit in units_of(model, layers)
    ]
    widest = max((_inputs(model, path) for path in layers), default=0)
    rows = min(ROWS, calibration(model, options, context).tokens) * widest * 8 * 2  # in float64, and squared
    return calibration(model, options, context).bytes + 2 * max(sums, default=0) + rows


def disk_bytes(model: Model, layers: Sequence[str], options: CalibrationOptions, context: Context) -> int:
    """Disk of a walk while it goes on: the units that are done, and the outputs that are still to be read.

    In a model of one stack a unit reads what the one before it gives; in others everything may be read to the end.
    """
    windows = windows_of(model, context.data.get(options.data), batch=options.batch, length=options.length)
    run = DryRun()
    given: dict[str, int] = {}
    with told_from_shapes(model, "calibrating"):
        shadow = run.shadow(model)
        for unit in units_of(model, layers):

            def see(module: nn.Module, args: Any, output: Any, unit: str = unit) -> None:
                given[unit] = given.get(unit, 0) + sum(tensor.nbytes for tensor in Shape.of(output)[1])

            shadow.module.get_submodule(unit).register_forward_hook(see)
        batch = run.batch(windows.batch)
        with run, torch.no_grad():
            model.family.forward_body(shadow, batch)
    waiting = sorted(given.values())[-2:] if len(model.anatomy.stacks) == 1 else given.values()
    done = sum(p.nbytes for path in layers for p in model.module.get_submodule(path).parameters())
    return done + sum(waiting) * -(-options.samples // options.batch)


def _distinct(model: Model, unit: str, layers: Collection[str]) -> list[str]:
    """The layers of a unit, one of those that are known to read one tensor: q, k and v; gate and up."""
    blocks = {block.path: block for stack in model.anatomy.stacks.values() for block in stack.blocks}
    paths = [paths[0] for paths in grouped_by_module(model.module, layers) if inside(paths[0], unit)]
    if (block := blocks.get(unit)) is None:
        return paths
    again: set[str] = set()
    if block.attention:
        again |= {block.attention.k.path, block.attention.v.path} - {block.attention.q.path}
    if block.ffn and block.ffn.gate and not block.ffn.experts:
        again |= {block.ffn.gate.path} - {block.ffn.up.path}
    return [path for path in paths if path not in again]


def _inputs(model: Model, path: str) -> int:
    layer: Any = model.module.get_submodule(path)
    outputs: int = layer.weight.shape[output_axis(layer)]
    return int(layer.weight.numel()) // outputs


def _sum_bytes(inputs: int, names: Collection[str]) -> int:
    return 8 * sum(inputs * inputs if name == "gram" else inputs for name in names)
