"""Wanda (Sun et al. 2023, 2306.11695, section 3): in every row those weights go whose size times input norm is least."""

from pydantic import Field
from zoo.compressor import Compressor, Context, Record, State, Trait, require_dense
from zoo.errors import Refused
from zoo.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.watch import CalibrationOptions, batches


class RowWanda(Compressor):
    """Zero the weights of every row that count least, by their size times the norm of their input (Wanda, section 3)."""

    name, leaves, structural = "wanda.rows", "sparse", False

    class Options(CalibrationOptions):
        sparsity: float = Field(0.5, gt=0, lt=1, description="share of each row set to zero")
        target: str = Field("language", description="which linear layers are pruned")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        if not (paths := self.outline(model, options)["paths"]):
            raise Refused(f"{self.name}: no linear layer is recognised in {options.target!r}; choose another target.")
        require_dense(state, paths, stage=self.name, does="prunes", allow=("shared",), leaves=self.leaves)

    def outline(self, model: Model, options: Options) -> Record:
        modules = dict(model.module.named_modules(remove_duplicate=False))
        paths = model.anatomy.select(options.target).projections()
        return {"sparsity": options.sparsity, "paths": [p for p in paths if hasattr(modules.get(p), "in_features")]}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record, data = self.outline(model, options), batches(model, options, context, stage=self.name)
        for unit in Walk(model, record["paths"], data, statistics=("squares",), context=context, stage=self.name):
            for path, seen in unit.layers.items():
                weight_OI = model.module.get_submodule(path).weight.detach()
                order_OI = (weight_OI.abs() * seen.squares.sqrt()).argsort(dim=1, stable=True)
                weight_OI.scatter_(1, order_OI[:, : round(options.sparsity * weight_OI.shape[1])], 0.0)
        return record

    def rebuild(self, model: Model, record: Record) -> None: ...

    def traits(self, record: Record) -> dict[str, Trait]:
        return {path: Trait("sparse", f"{record['sparsity']:.0%} of each row") for path in record["paths"]}
