"""The weight files of an artifact: which tensor goes where, written, described, and read into an empty module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.artifact.manifest import MANIFEST
from zoo.errors import ArtifactError, ZooError
from zoo.tensors import safetensors
from zoo.tensors.safetensors import pieces_of

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.tensors.offload import Offload

PIECE = 2**18  # values looked at together
Digests = Mapping[str, Mapping[str, Any]]  # by file
Empty = Callable[[Sequence[int], Any], Any]  # a shape and a dtype -> a tensor


def write(model: Model, folder: Path) -> None:
    """Write every distinct tensor once, into the files that the family keeps them in; one at a time is copied."""
    tensors, layout = model.tensors(), model.family.weight_files(model.spec.config)
    dtypes = _written_dtypes(model)
    for prefix, names in _by_file(tensors, layout).items():
        file = folder / layout[prefix]
        file.parent.mkdir(parents=True, exist_ok=True)
        ours = {name.removeprefix(prefix): tensors[name] for name in names}
        kinds = {name.removeprefix(prefix): dtypes[name] for name in names}
        with file.open("wb") as out:
            out.writelines(pieces_of(ours, {"format": "pt", "manifest": MANIFEST}, dtypes=kinds))


def _written_dtypes(model: Model) -> dict[str, torch.dtype]:
    """The dtypes of the tensors on disk: of float parameters the stored one, where that loses nothing."""
    stored = model.stored_dtypes()
    return {
        name: stored[name] if _fits(tensor.detach(), stored[name]) else tensor.dtype
        for name, tensor in model.tensors().items()
    }


def _fits(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether all values of a tensor are values of `dtype`; looked at in pieces, so that it is not copied whole."""
    import torch

    if tensor.dtype == dtype:
        return True
    pieces = torch.split(tensor.reshape(-1), PIECE)
    return all(torch.equal(piece.to(dtype).to(piece.dtype), piece) for piece in pieces)


def fill(model: Model, path: Path, *, digests: Digests | None = None, offload: Offload | None = None) -> None:
    """Fill a model's empty module from the weight files in the directory `path`, or from one safetensors file.

    Tensors stay memory-mapped until they are cast or moved.

    Args:
        digests: what a manifest says of the files, where their bytes are to be compared with it while they are read.
        offload: where tensors are put, one after another, in place of memory.

    Raises:
        ArtifactError: names the first missing, unexpected or misshapen tensor, or a file that is not as its manifest says.
    """
    from torch import nn

    from zoo.model.building import assign

    aliases: dict[str, list[str]] = {}  # so that what is shared stays shared
    for alias, name in model.aliases().items():
        aliases.setdefault(name, []).append(alias)
    empty = model.tensors()
    for name, tensor in read(model, path, digests=digests, empty=offload.empty if offload else None):
        if isinstance(empty[name], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for destination in (name, *aliases.get(name, ())):
            assign(model.module, destination, tensor)


def read(
    model: Model, path: Path, *, digests: Digests | None = None, empty: Empty | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a model by name, as they are in `path` and in the dtypes that an empty module gives them.

    Args:
        digests: as for `fill`.
        empty: makes, of a shape and a dtype, what a tensor is copied into; left out, it stays mapped.

    Raises:
        ArtifactError: names the first tensor that is missing, unexpected, misshapen, or whole numbers for floats, or a file
            that is not as its manifest says.
    """
    layout = {"": ""} if path.is_file() else model.family.weight_files(model.spec.config)
    files, tensors = {prefix: path / file for prefix, file in layout.items()}, model.tensors()
    for prefix, names in _by_file(tensors, files).items():
        expected = {name.removeprefix(prefix): tensors[name] for name in names}
        for name, tensor in _read_file(
            files[prefix], expected, empty=empty, digests=(digests or {}).get(layout[prefix])
        ):
            yield prefix + name, tensor


def require_described(model: Model, path: Path) -> None:
    """Compare a skeleton with the headers of the weight files in `path`, those that are there.

    Raises:
        ArtifactError: names the first missing, unexpected or misshapen tensor.
    """
    files = {prefix: path / file for prefix, file in model.family.weight_files(model.spec.config).items()}
    tensors = model.tensors()
    for prefix, names in _by_file(tensors, files).items():
        if files[prefix].is_file():
            shapes = {name: tuple(about["shape"]) for name, about in safetensors.read_header(files[prefix]).items()}
            _require_alike(
                files[prefix], {name.removeprefix(prefix): tuple(tensors[name].shape) for name in names}, shapes
            )


def _require_alike(path: Path, expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() - shapes.keys()) + sorted(shapes.keys() - expected.keys()):
        raise ArtifactError(f"{path}: tensor {name!r} is {'missing' if name in expected else 'not part of the model'}.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ArtifactError(f"{path}: {name!r} has shape {shapes[name]}, the model expects {shape}.")


def _by_file(tensors: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the tensors that go into each file, by prefix: the longest that fits."""
    names: dict[str, list[str]] = {prefix: [] for prefix in files}
    for name in tensors:
        fitting = [prefix for prefix in files if name.startswith(prefix)]
        if not fitting:
            raise ZooError(f"{name} belongs to no weight file; the family names files for {', '.join(files)}.")
        names[max(fitting, key=len)].append(name)
    return names


def _read_file(
    path: Path, expected: Mapping[str, torch.Tensor], *, empty: Empty | None, digests: Mapping[str, Any] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read from one file what it is expected to hold, as it lies there: name in the file -> tensor of the shape and dtype."""
    from zoo.system.memory import MappedFiles
    from zoo.tensors.alignment import aligned
    from zoo.tensors.mapped import KINDS, MappedTensors

    file = MappedTensors(path, digests, copies=empty is not None)
    shapes = {name: tuple(about["shape"]) for name, about in file.header.items()}
    _require_alike(path, {name: tuple(wanted.shape) for name, wanted in expected.items()}, shapes)
    mapped = MappedFiles()
    for name in sorted(expected, key=lambda name: file.header[name]["data_offsets"]):
        stored, wanted = KINDS[file.header[name]["dtype"]], expected[name].dtype
        if stored.is_floating_point != wanted.is_floating_point:
            kinds = [str(dtype).removeprefix("torch.") for dtype in (stored, wanted)]
            raise ArtifactError(f"{path}: {name!r} is of {kinds[0]}, the model expects {kinds[1]}.")
        dtype = wanted if stored.is_floating_point else stored
        if empty is not None:
            file.copy(name, place := empty(expected[name].shape, dtype))
            yield name, place
            continue
        source = file.tensor(name)
        tensor = source.to(dtype)
        yield name, aligned(tensor, mapped)
        if tensor is not source:
            mapped.let_go(source.data_ptr(), source.nbytes)
    file.require_sound()
