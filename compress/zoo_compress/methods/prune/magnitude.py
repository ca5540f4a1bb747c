"""Magnitude pruning: set the smallest weights of every targeted matrix to zero.

- "unstructured": one threshold a matrix, the count of zeros exact (Han et al. 2015, arXiv:1506.02626, section 3).
- "N:M": in every group of M neighbouring inputs of a row, the N largest stay (Zhou et al. 2021, arXiv:2102.04010).
"""

from __future__ import annotations

import torch

from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo_compress.experts import listed
from zoo_compress.methods.prune.matrices import matrices_of
from zoo_compress.methods.prune.patterns import PatternOptions, keep_largest, keep_of_groups
from zoo_compress.methods.prune.weights import PruneWeights


class PruneMagnitude(PruneWeights):
    """Zero the smallest weights of every targeted projection (Han et al. 2015, section 3)."""

    name = "prune.magnitude"
    # 1 left cross-attention as it was, 2 mixers, latent attention, shared experts and what else no one described, 3 experts in
    # one tensor where a pattern was asked for
    version = 4

    Options = PatternOptions

    def apply(self, model: Model, options: PatternOptions, context: Context) -> Record:
        record = self.outline(model, options)
        matrices, module = matrices_of(model, options), listed(model).module
        done: set[tuple[int, int, int]] = set()  # shared matrices once
        for matrix in context.progress.track(matrices, total=len(matrices), label=self.name):
            key = matrix.key(module)
            if key not in done:
                done.add(key)
                matrices_EOI = matrix.read(module)
                pruned = [magnitude_pruned(matrix_OI, options.share, options.groups) for matrix_OI in matrices_EOI]
                matrix.write(module, torch.stack(pruned))
        return record

    def working_bytes(self, model: Model, options: PatternOptions, context: Context) -> int:
        module = listed(model).module
        sizes = [matrix.weight(module).numel() for matrix in matrices_of(model, options)]
        return 16 * max(sizes, default=0)  # a copy, its magnitudes and their order

    def note(self, model: Model, options: PatternOptions) -> str:
        zeros = super().note(model, options)
        if model.origin == "random":
            return zeros
        return (
            f"{zeros} Trained models lose far more by size alone than by what their layers read: "
            "with calibration data in [data], prune.sparsegpt or prune.wanda."
        )


def magnitude_pruned(matrix_OI: torch.Tensor, sparsity: float, groups: tuple[int, int] | None = None) -> torch.Tensor:
    """Return a matrix (out, in) without its smallest entries: round(sparsity * size) of all, or M - N of each `groups` (N, M)."""
    scores_OI = matrix_OI.abs().float() if matrix_OI.dtype.itemsize < 4 else matrix_OI.abs()
    keep_OI = (
        keep_of_groups(scores_OI, *groups) if groups else keep_largest(scores_OI, round(sparsity * matrix_OI.numel()))
    )
    return torch.where(keep_OI, matrix_OI, 0.0)
