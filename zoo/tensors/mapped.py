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
from zoo.tensors.safetensors import DTYPES, damaged, parse_header, require_within

KINDS = {kind: getattr(torch, name) for name, kind in DTYPES.items()}


class MappedTensors:
    """The tensors of a safetensors file. They stay mapped, and nothing that is written into them reaches the file.

    Args:
        digests: what a manifest says of the file ("bytes" and "xxh3"); nothing is used that was not compared with it.

    Raises:
        ArtifactError: it is no safetensors file, or not as the manifest says.
    """

    def __init__(self, path: Path, digests: Mapping[str, Any] | None = None) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:  # an empty file, which cannot be mapped
            parse_header(io.BytesIO(), path)
            raise
        except OSError as error:
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
        first, last = about["data_offsets"]
        self._require_sound(self.start + last)
        dtype, count = KINDS[about["dtype"]], math.prod(about["shape"])
        if not count:
            return torch.empty(about["shape"], dtype=dtype)
        flat = torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=self.start + first)
        return flat.view(about["shape"])

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
