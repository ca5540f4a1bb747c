"""The header of a safetensors file: which tensors it holds and where, read without reading one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.errors import ArtifactError

LARGEST = 100_000_000  # bytes of a header, as in the format's own reader


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return {"dtype", "shape", "data_offsets"} of every tensor by name; the tensors themselves may be missing.

    Raises:
        ArtifactError: the file is unreadable or not a safetensors file.
    """
    return _read(path)[1]


def metadata(path: Path) -> dict[str, str]:
    """Return what a file says of itself beside its tensors.

    Raises:
        ArtifactError: the file is unreadable or not a safetensors file.
    """
    return _read(path)[2]


def require_whole(path: Path) -> None:
    """Raise `ArtifactError` naming the first tensor that lies beyond the end of the file."""
    start, tensors, _ = _read(path)
    size = path.stat().st_size
    for name, about in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"][1]):
        if start + about["data_offsets"][1] > size:
            raise ArtifactError(
                f"{path} is cut short at {size} bytes: tensor {name!r} ends at byte {start + about['data_offsets'][1]}."
            )


def _read(path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    """Where the tensors begin, the header, and its metadata."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST:
                raise ValueError(f"a header of {length} bytes")
            found = json.loads(file.read(length))
        about_file = dict(found.pop("__metadata__", {}))
        for about in found.values():
            (first, last), shape, _ = about["data_offsets"], about["shape"], about["dtype"]
            if not all(type(number) is int and number >= 0 for number in (first, last, *shape)) or first > last:
                raise ValueError("a shape or a range that is no numbers")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArtifactError(f"{path} is damaged: its safetensors header cannot be read ({reason}).") from None
    return 8 + length, found, about_file
