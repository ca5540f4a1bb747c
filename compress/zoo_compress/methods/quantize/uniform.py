"""Uniform codes: what the stages of 4 and of 8 bits share, from their options to the packed layers.

Every layer has a grid (bits, inputs that share a scale, symmetric or not) and a method that chooses its codes. Without data
that is rounding, or HQQ, which moves steps so that rounding loses less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from zoo.anatomy.modules import weight_out_in
from zoo.errors import Refused, UnknownName, nearest
from zoo.model.context import Context
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo_compress.methods.quantize.base import LINEAR, Quantize, QuantizeOptions
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.packed import check_finite
from zoo_compress.methods.quantize.solvers.grid import Codes, Grid
from zoo_compress.methods.quantize.solvers.hqq import hqq

Group = Literal["row", 32, 64, 128, 256]
Method = Literal["rounding", "hqq"]
GROUPS: dict[int, Group] = {4: 128, 8: "row"}  # of layers whose bits are not the stage's own
ROWS = {
    "bits": 8,
    "group": "row",
    "symmetric": True,
    "method": "rounding",
}  # of a layer that the record says nothing of


class Override(BaseModel):
    """Options of the layers that a pattern matches, where they differ from the stage's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str
    bits: Literal[4, 8] | None = None
    group: Group | None = None
    symmetric: bool | None = None
    method: Method | None = None


class UniformOptions(QuantizeOptions):
    """Options of the stages that choose codes on a grid."""

    method: Literal["auto"] | Method = Field(
        "auto", description='how codes are chosen; "auto": by HQQ, which needs no data'
    )
    group: Group = Field(
        128,
        description='neighbouring inputs that share a scale, or "row" for all of them; where it does not divide a layer\'s '
        "inputs, the largest of 32, 64, 128 and 256 below it that does, or the row",
    )
    symmetric: bool = Field(
        False, description="of 4 bits: zero is the middle of the codes, so that no zeros are stored; 8 bits always are"
    )
    overrides: tuple[Override, ...] = Field(
        (),
        examples=[[{"pattern": "*.down_proj", "bits": 8}]],
        description='layers that differ, each {pattern = "*.down_proj", bits = 8, group = 64, symmetric = true, '
        'method = "rounding"}; the last that matches counts',
    )


class QuantizeUniform(Quantize):
    """A stage that stores linear layers as codes of 4 or 8 bits on uniform grids."""

    def resolved(self, options: Any, roles: Collection[str]) -> Any:
        return options.model_copy(update={"method": "hqq"}) if options.method == "auto" else options

    def check(self, model: Model, state: State, options: Any) -> None:
        super().check(model, state, options)
        for path, grid in self._grids(model, options).items():
            inputs = weight_out_in(model.module.get_submodule(path)).shape[1]
            if grid["bits"] == 4 and inputs % 2:
                raise Refused(
                    f"{self.name}: {path} has {inputs} inputs, and two 4-bit weights share a byte of a row: the number "
                    f"must be even. Leave it out with skip = ['{path}'], or give it 8 bits in overrides."
                )

    def outline(self, model: Model, options: Any) -> Record:
        record = super().outline(model, options)
        grids = {path: grid for path, grid in self._grids(model, options).items() if grid != ROWS}
        return {**record, **({"grids": grids} if grids else {})}

    def of_layer(self, record: Record, path: str) -> Record:
        own: Record = record.get("grids", {}).get(path, ROWS)
        return own

    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_out_in(linear).float()
        check_finite(weight_OI)
        grid = grid_of(record, weight_OI.shape[1])
        return packed(hqq(weight_OI, grid) if record["method"] == "hqq" else grid.nearest(weight_OI), grid)

    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_out_in(linear)
        outputs, inputs = weight_OI.shape
        grid, device = grid_of(record, inputs), weight_OI.device
        if grid.bits == 4:
            return Int4Linear(inputs, outputs, False, grid.group, zeros=not grid.symmetric, device=device)
        return Int8Linear(inputs, outputs, False, groups=inputs // grid.group, device=device)

    def traits(self, record: Record) -> dict[str, Trait]:
        own = {path: self.of_layer(record, path) for path, kind in record["modules"].items() if kind == LINEAR}
        return super().traits(record) | {path: Trait("packed", f"{grid['bits']} bits") for path, grid in own.items()}

    def working_bytes(self, model: Model, options: Any, context: Context) -> int:
        return 4 * super().working_bytes(model, options, context)  # HQQ's weight, codes, errors and targets in float32

    def note(self, model: Model, options: Any) -> str:
        return "Codes are chosen by HQQ, without data." if self.resolved(options, ()).method == "hqq" else ""

    def _grids(self, model: Model, options: Any) -> dict[str, Record]:
        """Bits, group, symmetry and method of every linear layer that is packed."""
        paths = [path for path, kind in self._modules(model, options).items() if kind == LINEAR]
        for override in options.overrides:
            if not any(fnmatchcase(path, override.pattern) for path in paths):
                raise UnknownName(
                    f"overrides: {override.pattern!r} matches no linear layer of the target.{nearest(override.pattern, paths)}"
                )
        options = self.resolved(options, ())
        return {path: self._grid(model.module.get_submodule(path), path, options) for path in paths}

    def _grid(self, layer: nn.Module, path: str, options: Any) -> Record:
        own = {"bits": self.bits, "group": None, "symmetric": options.symmetric, "method": options.method}
        for override in options.overrides:
            if fnmatchcase(path, override.pattern):
                own |= override.model_dump(exclude={"pattern"}, exclude_none=True)
        if own["group"] is None:
            own["group"] = options.group if own["bits"] == self.bits else GROUPS[own["bits"]]
        try:
            inputs = weight_out_in(layer).shape[1]
        except ValueError:  # of which `check` says more
            inputs = 0
        own["group"] = group_of(own["group"], inputs)
        return own | ({"symmetric": True} if own["bits"] == 8 else {})


def group_of(asked: Group, inputs: int) -> Group:
    """How many inputs of a layer share a scale: as asked, or what fits it."""
    sizes: list[Group] = [256, 128, 64, 32]
    fitting = [size for size in sizes if asked != "row" and size <= asked and inputs % size == 0]  # type: ignore[operator]
    return fitting[0] if fitting else "row"


def grid_of(record: Mapping[str, Any], inputs: int) -> Grid:
    """The grid of a layer from what the record says of it."""
    return Grid(record["bits"], inputs if record["group"] == "row" else record["group"], record["symmetric"])


def packed(codes: Codes, grid: Grid) -> nn.Module:
    """A layer of the codes, without a bias."""
    scale_OG, zero_OG = codes.steps
    if grid.bits == 4:
        return Int4Linear.of(codes.codes, scale_OG, None if grid.symmetric else zero_OG)
    return Int8Linear.of(codes.codes, scale_OG)
