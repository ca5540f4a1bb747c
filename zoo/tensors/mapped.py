"""A safetensors file mapped into memory once: what is hashed, what is parsed, and what a model is made of are the same bytes."""

from __future__ import annotations

import io
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import ArtifactError
from zoo.system.hashing import Chunks
from zoo.system.memory import ran_out
from zoo.tensors.safetensors import DTYPES, damaged, parse_header, require_within

KINDS = {kind: getattr(torch, name) for name, kind in DTYPES.items()}
PIECE = 1 << 22  # bytes copied at a time


class MappedTensors:
    """The tensors of a safetensors file. They stay mapped, and nothing that is written into them reaches the file.

    Args:
        digests: what a manifest says of the file ("bytes" and "xxh3"); nothing is used that was not compared with it.
        copies: whether tensors are only copied out of it. Then the mapping is read-only: it counts as no memory of the
            process, whatever its size.

    Raises:
        ArtifactError: it is no safetensors file, or not as the manifest says.
    """

    def __init__(self, path: Path, digests: Mapping[str, Any] | None = None, *, copies: bool = False) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ if copies else mmap.ACCESS_COPY)
        except ValueError:  # an empty file, which cannot be mapped
            parse_header(io.BytesIO(), path)
            raise
        except OSError as error:
            if ran_out(error):
                raise MemoryError(f"there is no memory left to map {path}") from None
            raise damaged(path, error) from None
        self._mapping, self.size = mapping, len(mapping)
        self._chunks = Chunks(memoryview(mapping), digests["xxh3"]) if digests else None
        if digests and self.size != digests["bytes"]:
            raise ArtifactError(
                f"{path} has {self.size} bytes, the manifest says {digests['bytes']}; the artifact is damaged, so nothing was loaded."
            )
        self._require_sound(min(8, self.size))  # the chunk that says how long the header is
        self._require_sound(min(self.size, 8 + int.from_bytes(mapping[:8], "little")))
        self.start, self.header, _ = parse_header(mapping, path)
        self._require_in_order()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, mapped.

        Raises:
            ArtifactError: a byte of it, or one before it, is not as the manifest says.
        """
        about = self.header[name]
        dtype, first, last = self._range(name)
        if first == last:
            return torch.empty(about["shape"], dtype=dtype)
        flat = torch.frombuffer(self._mapping, dtype=dtype, count=(last - first) // dtype.itemsize, offset=first)
        return flat.view(about["shape"])

    def copy(self, name: str, place: torch.Tensor) -> None:
        """Copy one tensor, a piece at a time, into a contiguous one of its shape and of any dtype.

        Raises:
            ArtifactError: as `tensor`.
        """
        dtype, first, last = self._range(name)
        flat = place.view(-1)
        for start in range(first, last, PIECE):
            piece = torch.frombuffer(bytearray(self._mapping[start : min(start + PIECE, last)]), dtype=dtype)
            done = (start - first) // dtype.itemsize
            flat[done : done + len(piece)].copy_(piece)
        page = mmap.PAGESIZE
        whole = -(-first // page) * page, last // page * page
        if whole[1] > whole[0] and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED, whole[0], whole[1] - whole[0])

    def _range(self, name: str) -> tuple[torch.dtype, int, int]:
        """The dtype of a tensor, and where its bytes lie in the file, which have been compared with the manifest."""
        about = self.header[name]
        first, last = about["data_offsets"]
        self._require_sound(self.start + last)
        return KINDS[about["dtype"]], self.start + first, self.start + last

    def require_sound(self) -> None:
        """Compare what was not compared yet; a file that came with no hashes is taken as it is."""
        self._require_sound(self.size)

    def _require_sound(self, end: int) -> None:
        if self._chunks and (chunk := self._chunks.damaged(end)):
            raise ArtifactError(
                f"{self.path} does not have the xxh3 of the manifest from byte {chunk[0]:,} to {chunk[1]:,}; the artifact "
                "is damaged, so nothing was loaded."
            )

    def _require_in_order(self) -> None:
        """Refuse, as the format does, tensors that overlap or leave gaps, and ranges that their shapes do not fill."""
        require_within(self.path, self.start, self.header, self.size)
        end = 0
        for name, about in sorted(self.header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = about["data_offsets"]
            if about["dtype"] not in KINDS:
                raise ArtifactError(
                    f"{self.path}: {name!r} is of dtype {about['dtype'][:20]!r}, which zoo does not read."
                )
            if first != end:
                raise ArtifactError(
                    f"{self.path} is damaged: tensor {name!r} begins at {first}, where {end} is the next byte."
                )
            if last - first != math.prod(about["shape"]) * KINDS[about["dtype"]].itemsize:
                raise ArtifactError(f"{self.path} is damaged: the shape of tensor {name!r} does not fill its bytes.")
            end = last
        if self.start + end != self.size:
            raise ArtifactError(f"{self.path} is damaged: {self.size - self.start - end} bytes belong to no tensor.")
