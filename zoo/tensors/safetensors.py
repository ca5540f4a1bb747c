"""Safetensors files: the header, read without reading a tensor, and a layout in which tensors can stay mapped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.errors import ArtifactError
from zoo.system.reading import LARGEST_DATA, Kept, lfs_pointer, text_of

if TYPE_CHECKING:
    from mmap import mmap

    import torch
    from typing_extensions import Buffer


LARGEST = 100_000_000  # bytes of a header, as in the format's own reader


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return {"dtype", "shape", "data_offsets"} of every tensor by name; the tensors themselves may be missing.

    Raises:
        ArtifactError: the file is unreadable or not a safetensors file.
    """
    return _parsed(path)[1]


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a file says of itself beside its tensors.

    Raises:
        ArtifactError: the file is unreadable or not a safetensors file.
    """
    return _parsed(path)[2]


def require_whole(path: Path) -> None:
    """Raise `ArtifactError` naming the first tensor that lies beyond the end of the file."""
    start, tensors, _ = _parsed(path)
    require_within(path, start, tensors, path.stat().st_size)


def require_within(path: Path, start: int, tensors: Mapping[str, Mapping[str, Any]], size: int) -> None:
    """The same of a header that was read: the tensors begin at `start` of a file of `size` bytes."""
    for name, about in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"][1]):
        if start + about["data_offsets"][1] > size:
            raise ArtifactError(
                f"{path} is cut short at {size} bytes: tensor {name!r} ends at byte {start + about['data_offsets'][1]}."
            )


def files_of(folder: Path, *, stem: str = "model") -> list[Path]:
    """The weight files of a folder as its library lays it out: `model.safetensors`, else those that its index names.

    What else lies there is not the model's: Mistral's consolidated.safetensors, an adapter, another precision. Where
    neither is there, all of the folder's are returned, for what brings names of its own.

    Args:
        stem: what the library calls them; diffusers says diffusion_pytorch_model.

    Raises:
        ArtifactError: the index is unreadable, or names a file that is not in the folder: it would be followed anywhere.
    """
    if (folder / f"{stem}.safetensors").is_file():
        return [folder / f"{stem}.safetensors"]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        named = set(json.loads(text_of(index, error=ArtifactError, most=LARGEST_DATA))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{index} is not an index of weight files.") from None
    there = {file.name for file in folder.glob("*.safetensors")}
    for name in sorted(named - there, key=str):
        raise ArtifactError(f"{index}: {str(name)[:80]!r} is not a file of this directory.")
    return [folder / name for name in sorted(named)]


def require_named(folder: Path, files: Iterable[Path], *, stem: str = "model") -> None:
    """Refuse weight files that the library of a checkpoint does not look for, since it knows neither their order nor more.

    Raises:
        ArtifactError: says which names it looks for.
    """
    index = folder / f"{stem}.safetensors.index.json"
    for file in files:
        if file.name != f"{stem}.safetensors" and not index.is_file():
            raise ArtifactError(
                f"{folder} holds {file.name}, but no {stem}.safetensors, nor the {index.name} that says what is where: "
                "give the folder as it was saved, or rename a file that is all of the model."
            )


def _parsed(path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    """Where the tensors begin, the header, and its metadata."""
    try:
        start, header, metadata = _headers.of(path, lambda: _read(path))
    except OSError as error:
        raise damaged(path, error) from None
    return start, dict(header), dict(metadata)


def damaged(path: Path, error: Exception) -> ArtifactError:
    """Say that the header of a file cannot be read."""
    reason = " ".join(str(error).split())[:100]
    return ArtifactError(f"{path} is damaged: its safetensors header cannot be read ({reason}).")


def _read(path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    try:
        with path.open("rb") as file:
            return parse_header(file, path)
    except OSError as error:
        raise damaged(path, error) from None


def parse_header(file: BinaryIO | mmap, path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    """Read where the tensors begin, the header, and its metadata, from the beginning of an open file; `path` is for the sentence.

    Raises:
        ArtifactError: it is not the beginning of a safetensors file.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST and (pointer := lfs_pointer(path)):
            raise ArtifactError(f"{pointer}.")
        if length > LARGEST:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", None) or {})  # the format takes null for none
        for about in header.values():
            (first, last), shape, kind = about["data_offsets"], about["shape"], about["dtype"]
            if not all(type(number) is int and number >= 0 for number in (first, last, *shape)) or first > last:
                raise ValueError("a shape or a range that is no numbers")
            if not isinstance(kind, str):
                raise ValueError("a dtype that is no text")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    return 8 + length, header, metadata


_headers = Kept[tuple[int, dict[str, dict[str, Any]], dict[str, str]]]()

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "complex64": "C64",
}  # as safetensors spells them


def pieces_of(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Iterator[Buffer]:
    """Yield a safetensors file that can stay mapped: every tensor begins aligned, but for those after one of an odd size.

    The format's own writer puts the tensors wherever the header ends; the odd ones are small, and come last. One tensor
    at a time is copied, where it lies elsewhere or is written in another dtype.

    Args:
        dtypes: those that some tensors are written in, by name.
    """
    import torch

    from zoo.tensors.alignment import BYTES
    from zoo.tensors.offload import let_go

    kinds = {name: tensor.dtype for name, tensor in tensors.items()} | dict(dtypes or {})
    sizes = {name: tensor.numel() * kinds[name].itemsize for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (sizes[name] % BYTES > 0, -kinds[name].itemsize, name))
    about: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + sizes[name]
        kind = DTYPES[str(kinds[name]).removeprefix("torch.")]
        about[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % BYTES)
    yield len(text).to_bytes(8, "little") + text
    for name in order:  # nothing here holds on to a copy while the next is made
        yield tensors[name].detach().to(kinds[name]).cpu().contiguous().flatten().view(torch.uint8).numpy().data
        let_go(tensors[name])
