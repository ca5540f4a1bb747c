"""Uniform codes: what the stages of 4 and of 8 bits share, from their options to the packed layers.

Every layer has a grid (bits, inputs that share a scale, symmetric or not) and a method that chooses its codes. Without data
that is rounding, or HQQ, which moves steps so that rounding loses less. With calibration data the model is walked block by
block, so that each layer makes up for what the ones before it lost: GPTQ, AWQ, or AWQ and then GPTQ (`calibrated.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from zoo.anatomy.modules import grouped_by_module, inside
from zoo.errors import Refused, UnknownName, ZooError, nearest
from zoo.model.context import Context
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.experts import listed
from zoo_compress.methods.quantize.base import LINEAR, OWN, Quantize, QuantizeOptions, put
from zoo_compress.methods.quantize.calibrated import UnitSolver
from zoo_compress.methods.quantize.folds import find_folds
from zoo_compress.methods.quantize.formats.convolutions import Int4Conv2d, Int8Conv2d, weight_matrix
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.packed import check_finite
from zoo_compress.methods.quantize.formats.w8a8_layers import W8A8Linear
from zoo_compress.methods.quantize.solvers.grid import Codes, Grid
from zoo_compress.methods.quantize.solvers.hqq import hqq

Group = Literal["row", 32, 64, 128, 256]
Method = Literal["rounding", "hqq", "gptq", "awq", "awq+gptq"]
Activations = Literal["float", "int8"]
CALIBRATED = ("gptq", "awq", "awq+gptq")
HELD_OUT = 0.25  # of the batches, by which GPTQ's damping is chosen; codes then go by all of them
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
    activations: Activations | None = None


class UniformOptions(QuantizeOptions, CalibrationOptions):
    """Options of the stages that choose codes on a grid."""

    method: Literal["auto"] | Method = Field(
        "auto",
        description='how codes are chosen; "auto": by AWQ and then GPTQ where there is calibration data, else by HQQ',
    )
    group: Group = Field(
        128,
        description='neighbouring inputs that share a scale, or "row" for all of them; where it does not divide a layer\'s '
        "inputs, the largest of 32, 64, 128 and 256 below it that does, or the row",
    )
    symmetric: bool = Field(
        False, description="of 4 bits: zero is the middle of the codes, so that no zeros are stored; 8 bits always are"
    )
    convolutions: bool = Field(
        False,
        description="also pack convolutions, whose inputs are the numbers under the kernel; those that 32 does not divide get 8 bits a row",
    )
    overrides: tuple[Override, ...] = Field(
        (),
        description='layers that differ, each {pattern = "*.down_proj", bits = 8, group = 64, symmetric = true, '
        'method = "rounding"}; the last that matches counts',
    )


class QuantizeUniform(Quantize):
    """A stage that stores linear layers as codes of 4 or 8 bits on uniform grids."""

    def resolved(self, options: Any, roles: Collection[str]) -> Any:
        if options.method != "auto":
            return options
        return options.model_copy(update={"method": "awq+gptq" if options.data in roles else "hqq"})

    def roles(self, options: Any) -> tuple[str, ...]:
        methods = {options.method, *(override.method for override in options.overrides)}
        return (options.data,) if methods & set(CALIBRATED) else ()

    def check(self, model: Model, state: State, options: Any) -> None:
        super().check(model, state, options)
        model = listed(model)
        for path, grid in self._grids(model, options).items():
            self._refuse(path, weight_matrix(model.module.get_submodule(path)).shape[1], grid)

    def _refuse(self, path: str, inputs: int, grid: Mapping[str, Any]) -> None:
        """Refuse a grid that cannot be stored or run."""
        if grid["bits"] == 4 and inputs % 2:
            raise Refused(
                f"{self.name}: {path} has {inputs} inputs, and two 4-bit weights share a byte of a row: the number "
                f"must be even. Leave it out with skip = ['{path}'], or give it 8 bits in overrides."
            )
        if grid.get("activations") == "int8" and (grid["bits"], grid["group"]) != (8, "row"):
            raise Refused(
                f"{self.name}: {path} has {grid['bits']} bits and group = {grid['group']!r}; activations = 'int8' multiplies "
                "whole rows of 8 bits. Set group = 'row', or activations = 'float' for this layer in overrides."
            )

    def outline(self, model: Model, options: Any) -> Record:
        record = super().outline(model, options)
        grids = {path: grid for path, grid in self._grids(model, options).items() if grid != ROWS}
        return {**record, **({"grids": grids} if grids else {})}

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        if not self.roles(options):
            return super().apply(model, options, context)
        record = self.outline(model, options)
        module = listed(model).module
        layers = [path for path in _own(record["modules"]) if _one_group(module.get_submodule(path))]
        self._replace(
            model, record, empty=False, progress=context.progress, done=layers
        )  # tables, grouped convolutions
        record["layers"] = self._calibrate(model, layers, record, options, context)
        return record

    def _calibrate(
        self, model: Model, layers: list[str], record: Record, options: Any, context: Context
    ) -> dict[str, Record]:
        """Walk through the model and pack its layers unit by unit; return what is told of each."""
        module = model.module
        places = {paths[0]: paths for paths in grouped_by_module(module, layers)}
        own = {path: self.of_layer(record, path) for path in places}
        inputs = {path: weight_matrix(module.get_submodule(path)).shape[1] for path in places}
        grids = {path: (grid_of(own[path], inputs[path]), own[path]["method"]) for path in places}
        scaled = [path for path in places if "awq" in own[path]["method"] and record["modules"][path] == LINEAR]
        folds = find_folds(model, scaled)

        def rebuild(paths: Collection[str]) -> None:
            for path in paths:
                put(module, places[path], self.empty(module.get_submodule(path), own[path]))

        asked = {path: ("gram", "abssum") if path in scaled else ("gram",) for path in places}
        data = batches(model, options, context, stage=self.name)
        walk = Walk(
            model,
            places,
            data,
            statistics=asked,
            context=context,
            stage=self.name,
            held_out=HELD_OUT if any("gptq" in own[path]["method"] for path in places) else 0.0,
            rebuild=rebuild,
        )
        for unit in walk:
            try:
                solved = UnitSolver(module, unit, grids).solve(
                    [fold for fold in folds if fold.readers[0] in unit.layers]
                )
            except ValueError as error:
                raise ZooError(f"{self.name}: {unit.path}: {error}") from None
            for path, codes in solved.items():
                put(module, places[path], packed(module.get_submodule(path), codes, own[path]))
        return walk.table

    def of_layer(self, record: Record, path: str) -> Record:
        own: Record = record.get("grids", {}).get(path, ROWS)
        return own

    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_matrix(linear).float()
        check_finite(weight_OI)
        grid = grid_of(record, weight_OI.shape[1])
        codes = grid.nearest(weight_OI) if record["method"] == "rounding" else hqq(weight_OI, grid)
        return packed(linear, codes, record)

    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        weight_OI = weight_matrix(linear)
        outputs, inputs = weight_OI.shape
        grid, device = grid_of(record, inputs), weight_OI.device
        groups, zeros = inputs // grid.group, not grid.symmetric
        if isinstance(linear, nn.Conv2d):
            made = Int4Conv2d(linear, groups, zeros) if grid.bits == 4 else Int8Conv2d(linear, groups)
            return made.to_empty(device=device)
        if grid.bits == 4:
            return Int4Linear(inputs, outputs, False, grid.group, zeros=zeros, device=device)
        return eight_bits(record)(inputs, outputs, False, groups=groups, device=device)

    def traits(self, record: Record) -> dict[str, Trait]:
        own = {path: self.of_layer(record, path) for path in _own(record["modules"])}
        detail = {path: "W8A8" if "activations" in grid else f"{grid['bits']} bits" for path, grid in own.items()}
        return super().traits(record) | {path: Trait("packed", about) for path, about in detail.items()}

    def working_bytes(self, model: Model, options: Any, context: Context) -> int:
        largest = 4 * super().working_bytes(model, options, context)  # HQQ's weight, codes, errors, targets in float32
        if not self.roles(options):
            return largest
        from zoo_compress.dryrun import calibration

        model = listed(model)
        paths = _own(self._modules(model, options))
        grams = [8 * weight_matrix(model.module.get_submodule(path)).shape[1] ** 2 for path in paths]
        blocks = [block.path for stack in model.anatomy.stacks.values() for block in stack.blocks]
        in_unit = [sum(g for p, g in zip(paths, grams, strict=True) if inside(p, block)) for block in blocks]
        # the grams of a unit, of all data and of what is held out, scaled too, and of the widest layer what is factored on the way
        return largest + 4 * max([*in_unit, *grams]) + 9 * max(grams) + calibration(model, options, context).bytes

    def note(self, model: Model, options: Any) -> str:
        names = {"hqq": "HQQ, without data", "gptq": "GPTQ", "awq": "AWQ", "awq+gptq": "AWQ and GPTQ"}
        name = names.get(self.resolved(options, ()).method)
        if not name:
            return ""
        more = f" on {options.data} data" if options.method in CALIBRATED else ""
        less = "; with calibration data in [data], AWQ and GPTQ lose far less" if name == names["hqq"] else ""
        return f"Codes are chosen by {name}{more}{less}."

    def _grids(self, model: Model, options: Any) -> dict[str, Record]:
        """Bits, group, symmetry and method of every linear layer that is packed."""
        model = listed(model)
        paths = _own(self._modules(model, options))
        for override in options.overrides:
            if not any(fnmatchcase(path, override.pattern) for path in paths):
                raise UnknownName(
                    f"overrides: {override.pattern!r} matches no layer of the target.{nearest(override.pattern, paths)}"
                )
        options = self.resolved(options, ())
        return {path: self._grid(model.module.get_submodule(path), path, options) for path in paths}

    def _grid(self, layer: nn.Module, path: str, options: Any) -> Record:
        inputs = _inputs(layer)
        own: Record = {"bits": self.bits, "group": None, "symmetric": options.symmetric, "method": options.method}
        if isinstance(layer, nn.Conv2d) and inputs % 32:
            own["bits"] = 8
        own["activations"] = getattr(options, "activations", "float")
        for override in options.overrides:
            if fnmatchcase(path, override.pattern):
                own |= override.model_dump(exclude={"pattern"}, exclude_none=True)
        if own["group"] is None:
            own["group"] = options.group if own["bits"] == self.bits else GROUPS[own["bits"]]
        own["group"] = group_of(own["group"], inputs)
        if own["activations"] == "float" or isinstance(layer, nn.Conv2d):
            del own["activations"]
        if not _one_group(layer) and own["method"] in CALIBRATED:
            own["method"] = "hqq"
        return own | ({"symmetric": True} if own["bits"] == 8 else {})


def _inputs(layer: nn.Module) -> int:
    try:
        return weight_matrix(layer).shape[1]
    except ValueError:  # of which `check` says more
        return 0


def _own(modules: Mapping[str, str]) -> list[str]:
    """The layers that have a grid of their own: all but tables and heads."""
    return [path for path, kind in modules.items() if kind in OWN]


def _one_group(layer: nn.Module) -> bool:
    """Whether all outputs of a layer read the same inputs, so that one gram tells of all."""
    return not isinstance(layer, nn.Conv2d) or layer.groups == 1


def group_of(asked: Group, inputs: int) -> Group:
    """How many inputs of a layer share a scale: as asked, or what fits it."""
    sizes: list[Group] = [256, 128, 64, 32]
    fitting = [size for size in sizes if asked != "row" and size <= asked and inputs % size == 0]  # type: ignore[operator]
    return fitting[0] if fitting else "row"


def grid_of(record: Mapping[str, Any], inputs: int) -> Grid:
    """The grid of a layer from what the record says of it."""
    return Grid(record["bits"], inputs if record["group"] == "row" else record["group"], record["symmetric"])


def eight_bits(record: Mapping[str, Any]) -> type[Int8Linear]:
    """The kind of 8-bit layer that a record asks for."""
    return W8A8Linear if record.get("activations") == "int8" else Int8Linear


def packed(layer: nn.Module, codes: Codes, record: Mapping[str, Any]) -> nn.Module:
    """A layer of the codes in place of another, without a bias."""
    scale_OG, zero_OG = codes.steps
    zeros = None if record["symmetric"] else zero_OG
    if isinstance(layer, nn.Conv2d):
        if record["bits"] == 4:
            return Int4Conv2d.of(layer, codes.codes, scale_OG, zeros)
        return Int8Conv2d.of(layer, codes.codes, scale_OG)
    if record["bits"] == 4:
        return Int4Linear.of(codes.codes, scale_OG, zeros)
    return eight_bits(record).of(codes.codes, scale_OG)
