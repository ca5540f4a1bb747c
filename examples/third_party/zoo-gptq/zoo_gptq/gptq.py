"""GPTQ (Frantar et al. 2022, 2210.17323): round a column at a time, and let the columns that are left make up for it.

zoo's layer of 4-bit codes stores and runs the result; what is here is how the codes are chosen.
"""

from typing import Literal

import torch
from pydantic import Field
from zoo.compressor import Compressor, Context, Record, State, Trait, require_dense
from zoo.errors import Refused
from zoo.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.solvers.grid import Codes, Grid


class GptqInt4(Compressor):
    """Store linear layers in 4 bits, each column making up for the rounding of those before it (GPTQ, algorithm 1)."""

    name, leaves = "gptq.int4", "packed"

    class Options(CalibrationOptions):
        group: Literal[32, 64, 128] = Field(32, description="neighbouring inputs that share a scale")
        target: str = Field("language", description="which linear layers are stored in 4 bits")

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,)

    def check(self, model: Model, state: State, options: Options) -> None:
        if not (paths := self.outline(model, options)["paths"]):
            raise Refused(f"{self.name}: no linear layer in {options.target!r} has groups of {options.group} inputs.")
        require_dense(state, paths, stage=self.name, does="rounds", leaves=self.leaves)

    def outline(self, model: Model, options: Options) -> Record:
        layers, paths = dict(model.module.named_modules()), model.anatomy.select(options.target).projections()
        fitting = [path for path in paths if getattr(layers.get(path), "in_features", 1) % options.group == 0]
        return {"group": options.group, "paths": fitting}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record, data = self.outline(model, options), batches(model, options, context, stage=self.name)
        walk = Walk(model, record["paths"], data, statistics=("gram",), context=context, stage=self.name)
        walk.rebuild = lambda paths: self.rebuild(model, record | {"paths": paths})  # where a stopped run goes on
        for unit in walk:
            for path, seen in unit.layers.items():
                weight_OI = model.module.get_submodule(path).weight.detach().double()
                codes = gptq(weight_OI, seen.gram, Grid(4, options.group, symmetric=False))
                put(model, path, Int4Linear.of(codes.codes.float(), *codes.steps))
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        for path in record["paths"]:
            old = model.module.get_submodule(path)
            sizes = old.in_features, old.out_features
            put(model, path, Int4Linear(*sizes, False, record["group"], zeros=True, device=old.weight.device))

    def traits(self, record: Record) -> dict[str, Trait]:
        return {path: Trait("packed", "4 bits") for path in record["paths"]}


def put(model: Model, path: str, layer: Int4Linear) -> None:
    layer.bias = model.module.get_submodule(path).bias
    model.module.set_submodule(path, layer)


def gptq(weight_OI: torch.Tensor, gram_II: torch.Tensor, grid: Grid) -> Codes:
    """Choose codes in the order of the inputs' energy, on steps of the weight as it was."""
    steps = grid.steps(*grid.ranges(weight_OI.float()))
    order = gram_II.diagonal().argsort(descending=True)
    scale_OI, zero_OI = (each_OI[:, order].double() for each_OI in steps.each(weight_OI.shape[1]))
    damped_II = gram_II[order][:, order] + 0.01 * gram_II.diagonal().mean() * torch.eye(len(gram_II))
    factor_II = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped_II)), upper=True)
    left_OI, codes_OI = weight_OI[:, order], torch.empty_like(weight_OI)
    for i in range(len(order)):
        codes_OI[:, i] = (left_OI[:, i] / scale_OI[:, i] + zero_OI[:, i]).round().clamp(0, 15)
        lost_O = left_OI[:, i] - (codes_OI[:, i] - zero_OI[:, i]) * scale_OI[:, i]
        left_OI[:, i:] -= lost_O[:, None] / factor_II[i, i] * factor_II[i, i:]
    return Codes(codes_OI[:, order.argsort()], steps)
