"""What the stages share that set single weights to zero: which, how they are declared, and that shapes stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoo.anatomy.coverage import said
from zoo.compressor import Compressor, require_dense
from zoo.errors import Refused
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo_compress.experts import listable, listed, table_of
from zoo_compress.methods.prune.matrices import Matrix, left_as_they_are, matrices_of
from zoo_compress.methods.prune.patterns import PatternOptions, groups_of


class PruneWeights(Compressor):
    """A stage that sets single weights of every targeted projection to zero. Subclasses say which, in `apply`."""

    accepts = ("sparse", "shared")
    leaves = "sparse"
    structural = False

    def check(self, model: Model, state: State, options: Any) -> None:
        matrices, module = matrices_of(model, options), listed(model).module
        paths = _paths(model, matrices)
        require_dense(state, paths, stage=self.name, does="prunes", allow=self.accepts, leaves=self.leaves)
        for matrix in matrices:
            inputs = matrix.inputs(module)
            if options.groups and inputs % options.groups[1]:
                raise Refused(
                    f"{self.name}: {matrix.path} has {inputs} inputs, which {options.groups[1]} does not divide; "
                    f"pattern {options.pattern} needs whole groups. Use sparsity instead, or another pattern."
                )
        if not matrices:
            raise Refused(
                f"{self.name}: no projection or linear layer is recognised in {options.target!r}, so nothing can be pruned. "
                f"{said(left_as_they_are(model, options))}".strip()
            )

    def outline(self, model: Model, options: PatternOptions) -> Record:
        paths = _paths(model, matrices_of(model, options))
        pruned = {"pattern": options.pattern, "sparsity": options.share, "paths": paths}
        return {**pruned, **left_as_they_are(model, options)}

    def rebuild(self, model: Model, record: Record) -> None:
        """Zeros change no structure."""

    def traits(self, record: Record) -> dict[str, Trait]:
        detail = record["pattern"] if groups_of(record["pattern"]) else f"{record['sparsity']:.0%}"
        return {path: Trait("sparse", detail) for path in record["paths"]}

    def note(self, model: Model, options: Any) -> str:
        return "Zeros are stored like any other weight: the file does not shrink and nothing runs faster on CPU."


def _paths(model: Model, matrices: Iterable[Matrix]) -> list[str]:
    """Where matrices are in the model as it is saved, in which experts in one tensor stay so."""
    lists = listable(model.module)
    return list(dict.fromkeys(table_of(lists, matrix.path) for matrix in matrices))
