"""Codes by calibration: what AWQ and GPTQ do to the layers of one unit of a walk, and what the record says of it.

AWQ first scales the inputs of layers where that can be folded into what gives them, and clips ranges; GPTQ rounds column by
column on those ranges, and descends. A layer that no token reached has nothing to go by and is left to HQQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.model.lineage import Record
from zoo_compress.calibrate.blocks import Unit
from zoo_compress.calibrate.statistics import Statistics, output_error
from zoo_compress.methods.quantize.folds import Fold
from zoo_compress.methods.quantize.formats.convolutions import weight_matrix
from zoo_compress.methods.quantize.formats.packed import check_finite
from zoo_compress.methods.quantize.solvers import awq
from zoo_compress.methods.quantize.solvers.gptq import Factor, descend, factor, gptq
from zoo_compress.methods.quantize.solvers.grid import Codes, Grid
from zoo_compress.methods.quantize.solvers.hqq import hqq

UNREACHED, INDEFINITE = "hqq: no token reached it", "rounding: its inputs could not be factored"


@dataclass
class Layer:
    """A layer of a unit on its way to codes: its weight and the gram of its inputs, both scaled where a fold is."""

    weight_OI: Tensor
    gram_II: Tensor | None
    grid: Grid
    method: str
    key: tuple[int, ...]  # of the gram: layers with equal keys share it


@dataclass
class UnitSolver:
    """Finds the codes of every layer of one unit."""

    module: nn.Module
    unit: Unit
    grids: Mapping[str, tuple[Grid, str]]  # by path, the grid and the method
    factors: dict[tuple[int, ...], Factor | None] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)

    def solve(self, folds: Sequence[Fold]) -> dict[str, Codes]:
        """Scale, then solve layer by layer; what is told of each goes to the unit's table."""
        for path, seen in self.unit.layers.items():
            # a copy: folding a scale in writes into the module's own
            weight_OI = weight_matrix(self.module.get_submodule(path)).to(torch.float32, copy=True)
            check_finite(weight_OI)
            grid, method = self.grids[path]
            gram_II = seen.gram if seen.tokens else None
            self.layers[path] = Layer(weight_OI, gram_II, grid, method, (id(seen),))
            if gram_II is not None:
                rounded_OI = grid.nearest(weight_OI).weight()
                self.unit.table[path]["rounding_error"] = output_error(weight_OI, rounded_OI, gram_II)
        for number, fold in enumerate(folds):
            self._scale(fold, number)
        return {path: self._codes(path, layer) for path, layer in self.layers.items()}

    def _scale(self, fold: Fold, number: int) -> None:
        """Search the scale of a fold whose readers are all AWQ's, fold it in, and scale weights and grams with it."""
        readers = [self.layers.get(path) for path in fold.readers]
        seen: Statistics | None = self.unit.layers.get(fold.readers[0])
        if seen is None or not seen.tokens or seen.abssum is None:
            return
        chosen = [layer for layer in readers if layer is not None and "awq" in layer.method]
        if len(chosen) < len(readers) or len({layer.key for layer in chosen}) > 1 or chosen[0].gram_II is None:
            return
        gram_II = chosen[0].gram_II
        found = awq.search_scale(
            [layer.weight_OI for layer in chosen], [layer.grid for layer in chosen], gram_II, seen.abssum / seen.tokens
        )
        for path in fold.readers:
            self.unit.table[path]["alpha"] = found.alpha
        if found.alpha == 0:
            return
        scale_I = fold.divide(self.module, found.scale)
        scaled_II = gram_II / scale_I.double().outer(scale_I.double())
        for layer in chosen:
            layer.weight_OI = layer.weight_OI * scale_I
            layer.gram_II, layer.key = scaled_II, (*layer.key, number)
        source = self.layers.get(fold.source)
        if source is not None:  # up, whose rows were divided
            source.weight_OI[fold.outputs] /= scale_I[fold.columns][:, None]

    def _codes(self, path: str, layer: Layer) -> Codes:
        told = self.unit.table[path]
        told["method"] = layer.method
        grid, weight_OI, gram_II = layer.grid, layer.weight_OI, layer.gram_II
        if gram_II is None:
            told["fallback"] = UNREACHED
            return hqq(weight_OI, grid)
        codes = self._solved(layer, told)
        told["error"] = output_error(weight_OI, codes.weight(), gram_II)
        return codes

    def _solved(self, layer: Layer, told: Record) -> Codes:
        grid, weight_OI, gram_II = layer.grid, layer.weight_OI, layer.gram_II
        assert gram_II is not None
        if layer.method in ("rounding", "hqq"):
            return hqq(weight_OI, grid) if layer.method == "hqq" else grid.nearest(weight_OI)
        steps = awq.clip(weight_OI, grid, gram_II)
        if "gptq" not in layer.method:
            return grid.nearest(weight_OI, steps)
        if layer.key not in self.factors:
            self.factors[layer.key] = factor(gram_II)
        factored = self.factors[layer.key]
        if factored is None:
            told["fallback"] = INDEFINITE
            return grid.nearest(weight_OI, steps)
        told["damping"] = factored.damping
        return descend(weight_OI, gptq(weight_OI, factored, grid, steps), factored, grid)
