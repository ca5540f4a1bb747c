"""What Wanda and SparseGPT share: a walk through the model, block by block, in which every layer is pruned by what it reads.

What a layer reads is what the blocks before it give once they have been pruned; experts in one tensor are seen one by one,
each by the tokens that reach it. A layer that the data never reaches, and experts that cannot be seen so, are pruned by
magnitude; the record names them, and gives for every other layer the error of its output on the calibration data,
||X (W - W')^T|| / ||X W^T||, beside that of pruning by magnitude.
"""

# O out, I in, E experts

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zoo.anatomy.modules import resolve
from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.footprint import disk_bytes, memory_bytes
from zoo_compress.calibrate.statistics import Statistics, output_energy, relative
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.experts import listed
from zoo_compress.methods.prune.magnitude import magnitude_pruned
from zoo_compress.methods.prune.matrices import Matrix, matrices_of
from zoo_compress.methods.prune.patterns import PatternOptions
from zoo_compress.methods.prune.weights import PruneWeights


class CalibratedOptions(PatternOptions, CalibrationOptions):
    """Options of the stages that prune weights by calibration data."""


class PruneByCalibration(PruneWeights):
    """A stage that prunes each matrix by the gram of its inputs. Subclasses say how, in `solve`."""

    Options = CalibratedOptions
    version = 3  # 1 pruned experts in one tensor by magnitude, 2 drew noise by the batch

    @abstractmethod
    def prepare(self, gram_II: torch.Tensor) -> Any:
        """Work out what all matrices with these inputs share."""

    @abstractmethod
    def solve(self, matrix_OI: torch.Tensor, prepared: Any, options: CalibratedOptions) -> tuple[torch.Tensor, Record]:
        """Return the pruned matrix, and what the record says of it: its damping, a fallback."""

    def roles(self, options: CalibratedOptions) -> tuple[str, ...]:
        return (options.data,)

    def apply(self, model: Model, options: CalibratedOptions, context: Context) -> Record:
        record = self.outline(model, options)
        chosen, model = matrices_of(model, options), listed(model)
        matrices = _by_module(model.module, chosen)
        data = batches(model, options, context, stage=self.name)
        layers = _layers(model.module, matrices)
        walk = Walk(model, layers, data, statistics=("gram",), context=context, stage=self.name)
        for unit in walk:
            prepared: dict[Any, Any] = {}  # layers that read the same tensor share one object of statistics
            for path, seen in unit.layers.items():
                if seen.tokens:
                    unit.table[path] |= self._prune(model, matrices[path], seen, prepared, options)
        record["layers"] = walk.table
        unread = [path for path in matrices if not walk.table.get(path, {}).get("tokens")]
        for path in unread:
            record["layers"][path] = {"tokens": 0, "fallback": "magnitude"}
            for matrix in matrices[path]:
                pruned = [magnitude_pruned(m_OI, options.share, options.groups) for m_OI in matrix.read(model.module)]
                matrix.write(model.module, torch.stack(pruned))
        if unread:
            context.progress.say(
                f"{self.name}: by magnitude {unread[0]}{f' and {len(unread) - 1} more' if unread[1:] else ''}, "
                "of which no single layer's inputs were seen"
            )
        return record

    def _prune(
        self,
        model: Model,
        matrices: list[Matrix],
        seen: Statistics,
        prepared: dict[Any, Any],
        options: CalibratedOptions,
    ) -> Record:
        """Prune the matrices of one layer; return what the record says of it."""
        about: Record = {}
        whole = lost = by_magnitude = 0.0
        for matrix in matrices:
            (matrix_OI,) = matrix.read(model.module)
            gram_II, key = _gram(seen, matrix)
            if key not in prepared:
                prepared[key] = self.prepare(gram_II)
            pruned_OI, told = self.solve(matrix_OI, prepared[key], options)
            about |= told
            plain_OI = magnitude_pruned(matrix_OI, options.share, options.groups)
            whole += output_energy(matrix_OI.double(), gram_II)
            lost += output_energy((matrix_OI - pruned_OI).double(), gram_II)
            by_magnitude += output_energy((matrix_OI - plain_OI).double(), gram_II)
            matrix.write(model.module, pruned_OI[None])
        return {**about, "error": relative(lost, whole), "magnitude_error": relative(by_magnitude, whole)}

    def working_bytes(self, model: Model, options: CalibratedOptions, context: Context) -> int:
        chosen, model = matrices_of(model, options), listed(model)
        layers = _layers(model.module, _by_module(model.module, chosen))
        if not layers:
            return 0
        matrices = [matrix for matrix in chosen if matrix.path in layers]
        inputs = max(matrix.inputs(model.module) for matrix in matrices)
        size = max(matrix.weight(model.module).numel() for matrix in matrices)
        # of one layer the factor of its gram and what is on the way there, and copies of its weight, all in double
        return memory_bytes(model, layers, ("gram",), options, context) + 8 * (4 * inputs**2 + 5 * size)

    def disk_bytes(self, model: Model, options: CalibratedOptions, context: Context) -> int:
        chosen, model = matrices_of(model, options), listed(model)
        layers = _layers(model.module, _by_module(model.module, chosen))
        return disk_bytes(model, layers, options, context) if layers else 0


def _gram(seen: Statistics, matrix: Matrix) -> tuple[torch.Tensor, tuple[int, Any]]:
    """The gram of a matrix's own inputs, and what tells it from others."""
    assert seen.gram is not None
    if not matrix.is_input:
        return seen.gram, (id(seen), None)
    entries = matrix.entries()
    if len(entries) == len(seen.gram):
        return seen.gram, (id(seen), None)
    return seen.gram[entries][:, entries], (id(seen), matrix.part)


def _by_module(module: nn.Module, matrices: Iterable[Matrix]) -> dict[str, list[Matrix]]:
    """The matrices of each weight, by the first path that it sits at; each once, at however many places."""
    first: dict[int, str] = {}
    grouped: dict[str, dict[Any, Matrix]] = {}
    for matrix in matrices:
        path = first.setdefault(id(matrix.weight(module)), matrix.path)
        grouped.setdefault(path, {}).setdefault(matrix.key(module), matrix)
    return {path: list(keyed.values()) for path, keyed in grouped.items()}


def _layers(module: nn.Module, paths: Iterable[str]) -> list[str]:
    """What the walk sees: the layers that are modules."""
    return [path for path in paths if isinstance(resolve(module, path), nn.Module)]
