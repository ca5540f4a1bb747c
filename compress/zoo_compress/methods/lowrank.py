"""Low rank: replace a matrix by the product of two thin ones.

W (out, in) becomes U V with U (out, r), V (r, in); r = floor(ratio * out * in / (out + in)) keeps that share.

- Plain: the truncated singular value decomposition, nearest to W (Eckart and Young 1936).
- Whitened: SVD-LLM (Wang et al. 2024, arXiv:2403.07378, section 3.1). With S S^T = X^T X over the calibration inputs X,
  the SVD of W S is cut and S^-1 undone; then dropping the singular value s_i costs exactly s_i in output norm, so the
  cut is nearest in what the layer puts out. The inputs are what the blocks before give once they have been cut; a layer
  that no input reaches is cut plainly, and the record says so.
"""

# O out, I in, R rank, N calibration tokens

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from zoo.anatomy.coverage import left_out, said
from zoo.anatomy.direct_reads import read_directly
from zoo.anatomy.modules import grouped_by_module, require_sharers, resolve, weight_out_in
from zoo.anatomy.parts import Target
from zoo.compressor import Compressor, require_dense
from zoo.errors import Refused
from zoo.model.context import Context
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.footprint import disk_bytes, memory_bytes
from zoo_compress.calibrate.statistics import output_error
from zoo_compress.calibrate.watch import CalibrationOptions, batches
from zoo_compress.experts import install, kept_tables, listed, lists_of, moved, tables_behind

TOO_SMALL = "matrices too small for that rank"

Factors = tuple[torch.Tensor, torch.Tensor]


class LowRankLinear(nn.Module):
    """A linear layer as two: `down` to the rank, then `up` to the outputs; the bias is up's."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = _empty_linear(in_features, rank, device=device, dtype=dtype)
        self.up = _empty_linear(rank, out_features, device=device, dtype=dtype)
        if bias:
            self.up.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    @classmethod
    def like(cls, dense: nn.Module, rank: int) -> Self:
        """Return an empty one in place of `dense`, whose bias it keeps."""
        weight_OI = weight_out_in(dense)
        outputs, inputs = weight_OI.shape
        made = cls(inputs, outputs, rank, bias=False, device=weight_OI.device, dtype=weight_OI.dtype)
        made.up.bias = dense.bias  # type: ignore[assignment]
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(self.down(x))
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class ReadLowRankLinear(LowRankLinear):
    """One whose weight the code around it reads itself: multiplied out at each read."""

    @property
    def weight(self) -> torch.Tensor:
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.up.bias


class LowRankSVD(Compressor):
    """Factor every targeted projection into two thin ones, plainly or whitened by calibration data (SVD-LLM)."""

    name = "lowrank.svd"
    # 2: text begins with <bos>, padding takes no part, and cross-attention does; 3: so do mixers, latent attention, shared
    # experts; 4: calibrated block by block; 5: and experts in one tensor; 6: draws of their own for each row
    version = 6
    accepts = ("shared",)
    leaves = "factored"

    class Options(CalibrationOptions):
        ratio: float | None = Field(
            None, gt=0, lt=1, examples=[0.5], description="share of each projection's weights to keep"
        )
        rank: int | None = Field(None, ge=1, description="the rank itself, instead of ratio")
        whiten: bool = Field(True, description="weigh errors by calibration data (SVD-LLM); false: plain SVD, no data")
        target: str = Field("language", description="which projections are factored")

        @model_validator(mode="after")
        def _one_of(self) -> Self:
            if (self.ratio is None) == (self.rank is None):
                raise ValueError("give either ratio, such as 0.6, or rank")
            return self

    def roles(self, options: Options) -> tuple[str, ...]:
        return (options.data,) if options.whiten else ()

    def check(self, model: Model, state: State, options: Options) -> None:
        original, model = model, listed(model)
        target = model.anatomy.select(options.target)
        paths = list(_projections(model.module, target))
        tables = tables_behind(lists_of(model.module, paths), original.module)
        require_dense(state, [*paths, *tables], stage=self.name, does="factors", allow=self.accepts, leaves=self.leaves)
        ranks = _ranks(model.module, target, options)
        if not ranks:
            raise Refused(
                f"{self.name}: no projection or linear layer in {options.target!r} can be factored. "
                f"{said(_left_out(original, options, ranks, []))}".strip()
            )
        require_sharers(model.module, ranks, stage=self.name)

    def outline(self, model: Model, options: Options) -> Record:
        factored = listed(model)
        ranks = _ranks(factored.module, factored.anatomy.select(options.target), options)
        lists = lists_of(factored.module, ranks)
        experts = {"experts": lists} if lists else {}
        return {"ranks": ranks, **experts, **_left_out(listed(model, lists), options, ranks, lists)}

    def apply(self, model: Model, options: Options, context: Context) -> Record:
        record = self.outline(model, options)
        install(model.module, record.get("experts", ()), packed=record["ranks"])
        places = {group[0]: group for group in grouped_by_module(model.module, record["ranks"])}  # a shared one once
        if not options.whiten:
            for path in context.progress.track(places, total=len(places), label=self.name):
                self._factor(model, places[path], record["ranks"][path], None)
            return record
        data = batches(model, options, context, stage=self.name)

        def rebuild(paths: Collection[str]) -> None:
            for path in paths:
                _install(model.module, places[path], record["ranks"][path])

        walk = Walk(model, places, data, statistics=("gram",), context=context, stage=self.name, rebuild=rebuild)
        for unit in walk:
            for path, seen in unit.layers.items():
                gram_II = seen.gram if seen.tokens else None
                unit.table[path] |= self._factor(model, places[path], record["ranks"][path], gram_II)
        record["layers"] = walk.table
        unseen = [path for path, about in walk.table.items() if not about["tokens"]]
        if unseen:  # cross-attention with nothing to attend to, experts that no token takes
            record["unseen"] = unseen
            what = (
                f"{unseen[0]}, which is"
                if len(unseen) == 1
                else f"{len(unseen)} layers, such as {unseen[0]}, which are"
            )
            context.progress.say(f"{self.name}: the calibration data never reached {what} factored without whitening")
        return record

    def _factor(self, model: Model, places: Sequence[str], rank: int, gram_II: torch.Tensor | None) -> Record:
        """Put the factors of a layer in its places; say what of its output on the calibration data is lost."""
        weight_OI = weight_out_in(model.module.get_submodule(places[0]))
        factors = factor(weight_OI, rank, gram_II)
        told = {} if gram_II is None else {"error": output_error(weight_OI, factors[0] @ factors[1], gram_II)}
        layer = _install(model.module, places, rank)
        _fill(layer, *(part.to(weight_OI.dtype) for part in factors))
        return told

    def rebuild(self, model: Model, record: Record) -> None:
        install(model.module, record.get("experts", ()), packed=record["ranks"])
        for group in grouped_by_module(model.module, record["ranks"]):
            _install(model.module, group, record["ranks"][group[0]])

    def traits(self, record: Record) -> dict[str, Trait]:
        return {path: Trait("factored", f"rank {rank}") for path, rank in record["ranks"].items()}

    def moved(self, record: Record, path: str) -> str:
        return moved(record.get("experts", ()), path)

    def remedy(self, path: str) -> str:
        return 'Aim at the attention alone: target = "language.attention".'

    def working_bytes(self, model: Model, options: Options, context: Context) -> int:
        model = listed(model)
        target = model.anatomy.select(options.target)
        ranks = _ranks(model.module, target, options)
        shapes = {path: weight_out_in(model.module.get_submodule(path)).shape for path in ranks}
        pairs = sum(rank * sum(shapes[path]) for path, rank in ranks.items())
        svd_bytes = max((out * inputs for out, inputs in shapes.values()), default=0) * 8 * 4  # float64 W S and its SVD
        return (
            pairs * 4 + svd_bytes + (memory_bytes(model, ranks, ("gram",), options, context) if options.whiten else 0)
        )

    def disk_bytes(self, model: Model, options: Options, context: Context) -> int:
        model = listed(model)
        ranks = _ranks(model.module, model.anatomy.select(options.target), options)
        return disk_bytes(model, list(ranks), options, context) if options.whiten else 0

    def note(self, model: Model, options: Options) -> str:
        return "" if options.whiten else "Without whitening even a mild cut costs a language model most of its quality."


def _install(module: nn.Module, places: Sequence[str], rank: int) -> LowRankLinear:
    """Put an empty factored layer in every place of a dense one."""
    dense = module.get_submodule(places[0])
    # a Conv1D's weight is the other way round
    read = isinstance(dense, nn.Linear) and any(read_directly(module, path) for path in places)
    layer = (ReadLowRankLinear if read else LowRankLinear).like(dense, rank)
    for path in places:
        module.set_submodule(path, layer)
    return layer


def factor(weight_OI: torch.Tensor, rank: int, gram_II: torch.Tensor | None = None) -> Factors:
    """Return (up_OR, down_RI) in float64 whose product is nearest to the weight.

    Args:
        gram_II: X^T X of the inputs: nearest in the output X W^T; without it, nearest in the weight itself.
    """
    weight_OI = weight_OI.detach().double()
    if gram_II is None:
        return _cut(weight_OI, rank)
    root_II = _cholesky(gram_II)
    up_OR, down_RI = _cut(weight_OI @ root_II, rank)
    return up_OR, torch.linalg.solve_triangular(root_II, down_RI, upper=False, left=False)


def _cut(matrix_OI: torch.Tensor, rank: int) -> Factors:
    """Truncated SVD with the root of the singular values on either side; the largest entry of each u is positive."""
    u_OK, s_K, vt_KI = torch.linalg.svd(matrix_OI, full_matrices=False)
    u_OR, root_R, vt_RI = u_OK[:, :rank], s_K[:rank].sqrt(), vt_KI[:rank]
    largest_1R = u_OR.abs().argmax(dim=0, keepdim=True)
    sign_R = torch.where(u_OR.gather(0, largest_1R)[0] < 0, -1.0, 1.0).to(u_OR)
    return u_OR * (root_R * sign_R), vt_RI * (root_R * sign_R)[:, None]


def _cholesky(gram_II: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor; where there is none, |smallest eigenvalue| + 1e-6 is added to the diagonal first.

    So it is where inputs hardly vary beside the others: to undo such a root would take factors beyond float32.
    """
    gram_II = gram_II.double()
    root_II, failed = torch.linalg.cholesky_ex(gram_II)
    if int(failed) or float(root_II.diagonal().square().min()) < 1e-12 * float(gram_II.diagonal().mean()):
        smallest = torch.linalg.eigvalsh(gram_II)[0].abs()
        # 1e-6 is the authors'; the second term keeps it above the rounding of a gram of any scale
        damping = smallest + 1e-6 + 1e-12 * gram_II.diagonal().mean()
        damped_II = gram_II.clone()
        damped_II.diagonal().add_(damping)
        root_II = torch.linalg.cholesky(damped_II)
    return torch.as_tensor(root_II)


def _fill(layer: LowRankLinear, up_OR: torch.Tensor, down_RI: torch.Tensor) -> None:
    with torch.no_grad():
        layer.up.weight.copy_(up_OR)
        layer.down.weight.copy_(down_RI)


def _empty_linear(inputs: int, outputs: int, *, device: Any, dtype: Any) -> nn.Linear:
    """A Linear without bias that draws no random numbers."""
    linear = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=dtype)
    linear.weight = nn.Parameter(torch.zeros(outputs, inputs, device=device, dtype=dtype))
    return linear


# --- ranks ----------------------------------------------------------------------------------------------------------


def _ranks(module: nn.Module, target: Target, options: LowRankSVD.Options) -> dict[str, int]:
    """The rank of every projection; refuses those that have no place for a factor, or save nothing.

    Where no heads or channels are described (gates, adapters), a matrix too small to save anything stays as it is.
    """
    may_stay = {path for block in target.blocks for path in block.undivided()}
    ranks = {}
    for path in _projections(module, target):
        out, inputs = _shape(module, path)
        rank = options.rank if options.rank is not None else math.floor(options.ratio * out * inputs / (out + inputs))  # type: ignore[operator]
        largest = (out * inputs - 1) // (out + inputs)
        if path in may_stay and not 1 <= rank <= largest:
            continue
        if rank < 1:
            raise Refused(
                f"lowrank.svd: ratio = {options.ratio} leaves {path} ({out}, {inputs}) no rank at all; "
                f"rank 1 is {(out + inputs) / (out * inputs):.3f} of it."
            )
        if rank > largest:
            raise Refused(
                f"lowrank.svd: rank {rank} of {path} ({out}, {inputs}) takes {rank * (out + inputs):,} weights, and "
                f"the matrix has {out * inputs:,}: nothing is saved. The largest rank that saves is {largest}."
            )
        ranks[path] = rank
    return ranks


def _projections(module: nn.Module, target: Target) -> Iterator[str]:
    """Yield the projections in blocks that are modules, and the linear layers beside them."""
    yield from (path for path in target.projections() if isinstance(resolve(module, path), nn.Module))
    yield from (path for path in target.layers if isinstance(module.get_submodule(path), nn.Linear))


def _left_out(model: Model, options: LowRankSVD.Options, ranks: Mapping[str, int], lists: Collection[str]) -> Record:
    """What is not factored, for the record: what the anatomy does not name, routers, experts that stay in one tensor, small ones."""
    target = model.anatomy.select(options.target)
    small = [path for path in _projections(model.module, target) if path not in ranks]
    kept = {**kept_tables(model.module, target.projections(), lists), TOO_SMALL: small}
    return left_out(model, options.target, kept=kept)


def _shape(module: nn.Module, path: str) -> tuple[int, int]:
    projection = module.get_submodule(path)
    try:
        out, inputs = weight_out_in(projection).shape
    except (ValueError, AttributeError):
        kind = type(projection).__name__
        raise Refused(f"lowrank.svd: {path} is a {kind}; only plain linear layers are factored.") from None
    return out, inputs
