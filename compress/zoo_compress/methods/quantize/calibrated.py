"""Codes by calibration: what AWQ and GPTQ do to the layers of one unit of a walk, and what the record says of it.

AWQ first scales the inputs of layers where that can be folded into what gives them; alone it clips ranges as well. GPTQ rounds column
by column on HQQ's steps (on AWQ's clipped ones it loses up to 5 % more on other tokens, on whole ranges up to 3 %), under the damping
that loses least on calibration data that was held out, descends, and moves scales. A layer that no token reached has nothing to
go by and is left to HQQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zoo.model.lineage import Record
from zoo_compress.calibrate.blocks import Unit
from zoo_compress.calibrate.statistics import Statistics, output_energy, output_error
from zoo_compress.methods.quantize.folds import Fold
from zoo_compress.methods.quantize.formats.convolutions import weight_matrix
from zoo_compress.methods.quantize.formats.packed import check_finite
from zoo_compress.methods.quantize.solvers import awq
from zoo_compress.methods.quantize.solvers.gptq import DAMPINGS, USUAL, Factor, descend, factor, gptq, refit
from zoo_compress.methods.quantize.solvers.grid import Codes, Grid, Steps
from zoo_compress.methods.quantize.solvers.hqq import hqq

UNREACHED, INDEFINITE = "hqq: no token reached it", "rounding: its inputs could not be factored"


@dataclass
class Layer:
    """A layer of a unit on its way to codes: its weight and the grams of its inputs, all scaled where a fold is."""

    weight_OI: Tensor
    gram_II: Tensor | None  # of all calibration data
    held_out_II: Tensor | None  # of what of it was held out
    grid: Grid
    method: str
    key: tuple[int, ...]  # of the grams: layers with equal keys share them


@dataclass
class UnitSolver:
    """Finds the codes of every layer of one unit."""

    module: nn.Module
    unit: Unit
    grids: Mapping[str, tuple[Grid, str]]  # by path, the grid and the method
    factors: dict[tuple[float, bool], Factor | None] = field(default_factory=dict)  # of the grams of `key`
    key: tuple[int, ...] = ()
    sums: dict[int, Tensor | None] = field(default_factory=dict)  # grams of all data, by the statistics of most of it
    layers: dict[str, Layer] = field(default_factory=dict)

    def solve(self, folds: Sequence[Fold]) -> dict[str, Codes]:
        """Scale, then solve layer by layer; what is told of each goes to the unit's table."""
        for path, seen in self.unit.layers.items():
            # a copy: folding a scale in writes into the module's own
            weight_OI = weight_matrix(self.module.get_submodule(path)).to(torch.float32, copy=True)
            check_finite(weight_OI)
            grid, method = self.grids[path]
            gram_II, held_out_II = self._grams(path, seen)
            self.layers[path] = Layer(weight_OI, gram_II, held_out_II, grid, method, (id(seen),))
            if gram_II is not None:
                rounded_OI = grid.nearest(weight_OI).weight()
                self.unit.table[path]["rounding_error"] = output_error(weight_OI, rounded_OI, gram_II)
        for number, fold in enumerate(folds):
            self._scale(fold, number)
        return {path: self._codes(path, layer) for path, layer in self.layers.items()}

    def _grams(self, path: str, seen: Statistics) -> tuple[Tensor | None, Tensor | None]:
        """The gram of all that a layer read, and of what was held out where that is a part of it."""
        apart = self.unit.held_out.get(path)
        if apart is None or not apart.tokens:
            return (seen.gram if seen.tokens else None), None
        assert seen.gram is not None and apart.gram is not None
        self.unit.table[path]["tokens"] = seen.tokens + apart.tokens
        if id(seen) not in self.sums:
            self.sums[id(seen)] = seen.gram + apart.gram
        return self.sums[id(seen)], apart.gram if seen.tokens else None

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
        square_II = scale_I.double().outer(scale_I.double())
        scaled_II = gram_II / square_II
        held_out_II = None if chosen[0].held_out_II is None else chosen[0].held_out_II / square_II
        for layer in chosen:
            layer.weight_OI = layer.weight_OI * scale_I
            layer.gram_II, layer.held_out_II, layer.key = scaled_II, held_out_II, (*layer.key, number)
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
        if "gptq" not in layer.method:
            return grid.nearest(weight_OI, awq.clip(weight_OI, grid, gram_II))
        steps = hqq(weight_OI, grid, iterations=5).steps  # more make no difference here
        factored = self._factor(layer, self._damping(layer, steps))
        if factored is None:
            told["fallback"] = INDEFINITE
            return grid.nearest(weight_OI, steps)
        told["damping"] = factored.damping
        codes = descend(weight_OI, gptq(weight_OI, factored, grid, steps), factored, grid)
        return descend(weight_OI, refit(weight_OI, codes, factored, grid), factored, grid, sweeps=1)

    def _damping(self, layer: Layer, steps: Steps) -> float:
        """The damping under which codes that go by the rest of the data change the output of what was held out least."""
        if layer.held_out_II is None:
            return USUAL
        lost: dict[float, float] = {}
        for damping in DAMPINGS:
            factored = self._factor(layer, damping, rest=True)
            if factored is not None:
                codes = gptq(layer.weight_OI, factored, layer.grid, steps)
                lost[damping] = output_energy(layer.weight_OI - codes.weight(), layer.held_out_II)
        return min(lost, key=lost.__getitem__, default=USUAL)

    def _factor(self, layer: Layer, damping: float, *, rest: bool = False) -> Factor | None:
        """The factor of a layer's gram, or of the rest of it that was not held out."""
        if layer.key != self.key:  # layers that share their inputs follow one another
            self.key, self.factors = layer.key, {}
        if (damping, rest) not in self.factors:
            assert layer.gram_II is not None
            gram_II = layer.gram_II - layer.held_out_II if rest and layer.held_out_II is not None else layer.gram_II
            self.factors[damping, rest] = factor(gram_II, damping)
        return self.factors[damping, rest]
