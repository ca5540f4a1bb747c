"""What the quantisers share: which modules are packed, how they are swapped in, and how that is replayed.

A stage packs every projection of its target and, where asked, the token table and the head. A module that sits at
several paths (share.ffn) is packed once and stays one; a head tied to the token table keeps reading the same buffers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from zoo.anatomy.coverage import left_out, said
from zoo.anatomy.direct_reads import read_directly
from zoo.anatomy.modules import grouped_by_module, is_embedding, require_sharers, resolve, weight_out_in
from zoo.anatomy.parts import Anatomy, Stack
from zoo.compressor import Compressor, require_dense
from zoo.errors import ArtifactError, Refused, UnknownName, ZooError, nearest
from zoo.model.context import Context, Progress, Silent
from zoo.model.lineage import Record, State, Trait
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo_compress.experts import install, kept_tables, listed, lists_of, moved, tables_behind
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear, pack_rows
from zoo_compress.methods.quantize.formats.packed import with_weight

LINEAR, CONVOLUTION, EMBEDDING, TABLE_HEAD = "linear", "convolution", "int8-embedding", "int8-head"
OWN = (
    LINEAR,
    CONVOLUTION,
    "int8-convolution",
)  # packed by the stage; the last is what earlier versions called a convolution
BITS = {**dict.fromkeys(OWN, 0), EMBEDDING: 8, TABLE_HEAD: 8}  # 0: the stage's own


class QuantizeOptions(CompressorOptions):
    """Options that every weight quantiser shares."""

    target: str = Field(
        "all", description='"all" (every stack, and what joins them), or a part such as "language" or "unet.down"'
    )
    embedding: bool = Field(True, description="also pack the token table and the head, to 8 bits a row")
    skip: tuple[str, ...] = Field((), description='modules to leave as they are, as patterns such as "*.down_proj"')


class ScaledInt8Embedding(Int8Embedding):
    """An Int8Embedding whose rows are multiplied by a constant (Gemma); a tied head reads them without it."""

    multiplier: float = 1.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = super().forward(ids)
        return rows * torch.tensor(self.multiplier, dtype=rows.dtype, device=rows.device)


class Quantize(Compressor):
    """A stage that stores linear layers packed, and convolutions where its options say so. Subclasses say what a packed one is."""

    # 1 left cross-attention as it was, 2 mixers, latent attention, shared experts and what else no one described, 3 experts in one
    # tensor
    version = 4
    bits: ClassVar[int]
    accepts = ("sparse", "shared", "factored")
    leaves = "packed"

    @abstractmethod
    def pack(self, linear: nn.Module, record: Record) -> nn.Module:
        """Pack one layer."""

    @abstractmethod
    def empty(self, linear: nn.Module, record: Record) -> nn.Module:
        """Return an empty packed layer in place of `linear`."""

    def refuse_shape(self, path: str, shape: torch.Size) -> None:
        """Refuse a weight (out, in) that this format cannot hold."""

    def settings(self, options: Any) -> dict[str, Any]:
        """Options that `empty` needs, for the record."""
        return {}

    def of_layer(self, record: Record, path: str) -> Record:
        """What `pack` and `empty` are given of the record for one layer; all of it where layers are packed alike."""
        return record

    def check(self, model: Model, state: State, options: Any) -> None:
        original, model = model, listed(model)
        modules = self._modules(model, options)
        lists = lists_of(model.module, modules)
        paths = [*modules, *tables_behind(lists, original.module)]
        require_dense(state, paths, stage=self.name, does="packs", allow=self.accepts, leaves=self.leaves)
        if not modules:
            left = said(_left_out(original, options, lists))
            raise Refused(
                f"{self.name}: nothing is left to pack in {options.target!r}; look at target and skip. {left}".strip()
            )
        for path, kind in modules.items():
            part = model.module.get_submodule(path)
            if kind == EMBEDDING:
                _require_table(part, path, stage=self.name)
            elif kind != CONVOLUTION:
                self.refuse_shape(path, _shape(part, path, stage=self.name))
        _require_both_halves(model.anatomy, modules, stage=self.name)
        require_sharers(model.module, modules, stage=self.name)

    def outline(self, model: Model, options: Any) -> Record:
        packed = listed(model)
        modules = self._modules(packed, options)
        lists = lists_of(packed.module, modules)
        return {
            "modules": modules,
            **({"experts": lists} if lists else {}),
            **self.settings(options),
            **_left_out(model, options, lists),
        }

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        record = self.outline(model, options)
        self._replace(model, record, empty=False, progress=context.progress)
        return record

    def rebuild(self, model: Model, record: Record) -> None:
        self._replace(model, record, empty=True, progress=Silent())

    def traits(self, record: Record) -> dict[str, Trait]:
        return {path: Trait("packed", f"{BITS[kind] or self.bits} bits") for path, kind in record["modules"].items()}

    def moved(self, record: Record, path: str) -> str:
        return moved(record.get("experts", ()), path)

    def remedy(self, path: str) -> str:
        if path:
            return f"Leave it out with skip = ['*.{path.rpartition('.')[2]}']."
        return "Leave out with skip = [...] what the model reads in a way of its own, or choose another target."

    def working_bytes(self, model: Model, options: Any, context: Context) -> int:
        record = self.outline(model, options)
        packed = listed(model).module
        sizes = [
            p.numel()
            for path, kind in record["modules"].items()
            if kind not in (EMBEDDING, TABLE_HEAD)  # packed some rows at a time
            for p in packed.get_submodule(path).parameters()
        ]
        lists = record.get("experts", ())
        tables = [sum(p.numel() for p in packed.get_submodule(path).parameters()) for path in lists]
        # a float32 copy of one weight, its quotients, its codes; codes beside experts in one tensor, until all of them are packed
        return 12 * max(sizes, default=0) + max(tables, default=0)

    def _replace(
        self, model: Model, record: Record, *, empty: bool, progress: Progress, done: Collection[str] = ()
    ) -> None:
        """Swap the packed layers in, a module at several places once, the token table before the head it is tied to.

        Args:
            done: paths where they are already.
        """
        kinds: dict[str, str] = record["modules"]
        for path, kind in kinds.items():
            if kind not in BITS:
                raise ArtifactError(f"{self.name}: {path} is packed as {kind!r}, which this version does not know.")
        install(model.module, record.get("experts", ()), packed=kinds)
        kinds = {path: kind for path, kind in kinds.items() if path not in done}
        tables = _tied_tables(model.module, kinds)
        groups = sorted(grouped_by_module(model.module, kinds), key=lambda group: kinds[group[0]] != EMBEDDING)
        for group in progress.track(groups, total=len(groups), label=self.name):
            path = group[0]
            old = model.module.get_submodule(path)
            try:
                if kinds[path] == EMBEDDING:
                    new: nn.Module = _pack_table(old, dtype=getattr(torch, model.dtype), empty=empty)
                elif path in tables:
                    table = model.module.get_submodule(tables[path])
                    assert isinstance(table, Int8Embedding)
                    new = table.tie(empty_int8(old))
                elif kinds[path] == TABLE_HEAD:
                    new = empty_int8(old) if empty else Int8Linear.from_linear(old)
                else:
                    own = self.of_layer(record, path)
                    new = self.empty(old, own) if empty else self.pack(old, own)
            except ValueError as error:
                raise ZooError(f"{self.name}: {path}: {error}") from None
            put(model.module, group, new)

    def _modules(self, model: Model, options: Any) -> dict[str, str]:
        """What the stage packs, each path with its kind."""
        modules = dict.fromkeys(_linears(model, options), LINEAR)
        if getattr(options, "convolutions", False):
            layers = model.anatomy.select(options.target).layers
            modules |= {path: CONVOLUTION for path in layers if isinstance(model.module.get_submodule(path), nn.Conv2d)}
        if options.embedding:
            modules |= _tables(model, options.target)
        for glob in options.skip:
            if not any(fnmatchcase(path, glob) for path in modules):
                raise UnknownName(f"skip = {glob!r} matches no module of the target.{nearest(glob, modules)}")
        return {path: kind for path, kind in modules.items() if not _matches(path, options.skip)}


def put(module: nn.Module, paths: Sequence[str], new: nn.Module) -> None:
    """Put a packed layer at every place of the one it is made of; it takes over the bias."""
    old: Any = module.get_submodule(paths[0])
    if not isinstance(new, Int8Embedding):
        new.bias = old.bias  # the very parameter, which other modules may share
        plain = isinstance(old, nn.Linear | nn.Conv2d)  # a Conv1D's weight is the other way round
        if plain and any(read_directly(module, path) for path in paths):
            new = with_weight(new, old.weight.dtype)
    new.train(old.training)
    for path in paths:
        module.set_submodule(path, new)


# --- which modules --------------------------------------------------------------------------------------------------


def _linears(model: Model, options: QuantizeOptions) -> Iterator[str]:
    """Yield the plain linear layers of the target; a factored projection yields its two factors."""
    anatomy = model.anatomy
    target = anatomy.select(options.target)
    for path in target.projections():
        yield from _leaves(model.module, path, options.skip)
    beside = [*target.layers]
    if target.whole and not target.part:
        beside += [path for stack, _ in target.picks for path in (*stack.readers, *stack.writers)]
    for path in dict.fromkeys(beside):
        if path not in (anatomy.embedding, anatomy.head) and _is_linear(model.module.get_submodule(path)):
            yield path


def _leaves(module: nn.Module, path: str, skip: Iterable[str]) -> Iterator[str]:
    projection = resolve(module, path)
    if isinstance(projection, nn.Module):
        leaves = [name for name, part in projection.named_modules(prefix=path) if _is_linear(part)]
        yield from leaves or [path]
    elif _matches(path, skip):  # what stays in one tensor is kept in any case; the pattern is to be seen to match
        yield path


def _left_out(model: Model, options: QuantizeOptions, lists: Collection[str]) -> Record:
    """What is not packed, for the record: what the anatomy does not name, routers, and experts that stay in one tensor."""
    kept = kept_tables(model.module, model.anatomy.select(options.target).projections(), lists)
    return left_out(model, options.target, kept=kept)


def _tables(model: Model, target: str) -> dict[str, str]:
    """The token table and the head, where the target takes in the whole stack they belong to."""
    anatomy = model.anatomy
    chosen = anatomy.select(target)
    whole = chosen.whole and not chosen.part
    if not whole or not (target == "all" or any(_owns_tables(anatomy, stack) for stack, _ in chosen.picks)):
        return {}
    tables = {}
    if anatomy.embedding and is_embedding(model.module.get_submodule(anatomy.embedding)):  # and no network of bytes
        tables[anatomy.embedding] = EMBEDDING
    if anatomy.head:
        tables[anatomy.head] = TABLE_HEAD
    return tables


def _owns_tables(anatomy: Anatomy, stack: Stack) -> bool:
    return anatomy.embedding in stack.embeddings or (stack.head is not None and stack.head == anatomy.head)


def _matches(path: str, skip: Iterable[str]) -> bool:
    return any(fnmatchcase(path, glob) for glob in skip)


def _require_table(table: nn.Module, path: str, *, stage: str) -> None:
    """Refuse a table whose lookup does more than read rows."""
    if _multiplier(table) is None:
        raise Refused(
            f"{stage}: {path} is a {type(table).__name__}, whose lookup may do more than read rows. "
            "Set embedding = false."
        )


def _require_both_halves(anatomy: Anatomy, modules: Collection[str | None], *, stage: str) -> None:
    """Refuse to pack one half of a tied pair: the other would keep the weight, and nothing be saved."""
    if anatomy.tied and (anatomy.embedding in modules) != (anatomy.head in modules):
        raise Refused(
            f"{stage}: {anatomy.embedding} and {anatomy.head} share one weight, and skip leaves out one of them; "
            "skip both or neither."
        )


def _tied_tables(module: nn.Module, kinds: dict[str, str]) -> dict[str, str]:
    """The token table of every head that reads its very weight: head -> table."""
    tables = {id(module.get_submodule(path).weight): path for path, kind in kinds.items() if kind == EMBEDDING}
    heads = [path for path, kind in kinds.items() if kind == TABLE_HEAD]
    return {path: tables[key] for path in heads if (key := id(module.get_submodule(path).weight)) in tables}


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _shape(part: nn.Module, path: str, *, stage: str) -> torch.Size:
    """The weight's shape (out, in); refuses what is no plain linear layer."""
    try:
        return weight_out_in(part).shape
    except (ValueError, AttributeError):
        raise Refused(
            f"{stage}: {path} is a {type(part).__name__}; only plain linear layers are packed. "
            f"Leave it out with skip = ['{path}']."
        ) from None


# --- the token table ------------------------------------------------------------------------------------------------


def _multiplier(table: nn.Module) -> float | None:
    """The constant a lookup multiplies rows by; None where a lookup is something else altogether."""
    if type(table).forward is nn.Embedding.forward and getattr(table, "max_norm", None) is None:
        return 1.0
    for name in ("scalar_embed_scale", "embed_scale"):  # transformers' scaled embeddings
        value = getattr(table, name, None)
        if isinstance(value, int | float):
            return float(value)
    return None


def _pack_table(old: Any, *, dtype: torch.dtype, empty: bool) -> Int8Embedding:
    multiplier = _multiplier(old)
    kind = Int8Embedding if multiplier in (None, 1.0) else ScaledInt8Embedding
    weight_VD: torch.Tensor = old.weight
    vocabulary, width = weight_VD.shape
    device = weight_VD.device if empty else "meta"
    table = kind(vocabulary, width, device=device, dtype=dtype if empty else weight_VD.dtype)
    if isinstance(table, ScaledInt8Embedding) and multiplier is not None:
        table.multiplier = multiplier
    if not empty:
        table.weight_int8, table.scale = pack_rows(weight_VD)
    return table


def empty_int8(old: nn.Module) -> Int8Linear:
    weight_OI = weight_out_in(old)
    outputs, inputs = weight_OI.shape
    return Int8Linear(inputs, outputs, bias=False, device=weight_OI.device)
