"""GGUF files: the header, checked against the size of the file before any library reads it.

Every count, length, dimension and offset in a header is a number that anybody may have written. A file of 160 bytes that
says it has four billion strings, or tensors of terabytes, has to be refused before somebody makes room for them.

Source: github.com/ggml-org/ggml, docs/gguf.md (version 3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from zoo.errors import ArtifactError
from zoo.system.reading import lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST = 100_000_000  # bytes of a header; that of a vocabulary of 262,144 tokens has 16 million
MOST_ENTRIES = 2**16  # metadata keys, and tensors; the readers of libraries take a kilobyte for each
MOST_ELEMENTS = 2**21  # of all arrays together: tokens, their scores and kinds, merges
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # where general.alignment does not say otherwise

# metadata type -> its format; 8 is a string, 9 an array
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# tensor type -> name, weights in a block, bytes of a block
KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file, and how it is stored."""

    shape: tuple[int, ...]  # as torch writes it: the dimension that runs fastest comes last
    kind: str  # "F32", "Q4_K", ...
    start: int  # bytes from the beginning of the file
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself, and its tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def kinds(self) -> dict[str, int]:
        """How many weights are stored in which way, the most first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.elements
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def said(self) -> str:
        """How the weights are stored, in words: "106,168,320 weights in Q4_1, 35,136 in F32, widened to floats"."""
        first, *rest = (f"{count:,} weights in {kind}" for kind, count in self.kinds.items())
        packed = any(kind not in FLOATS for kind in self.kinds)
        return ", ".join(
            [first, *(part.replace(" weights", "") for part in rest), *(["widened to floats"] if packed else [])]
        )


def read_header(path: Path) -> Header:
    """Read what is before the tensors of a GGUF file, and check that they lie within it, apart from each other.

    Raises:
        ArtifactError: it is no GGUF file, of another version or byte order, one of several files, or damaged; says where.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ArtifactError(f"{lfs_pointer(path) or f'{path} is not a GGUF file'}.")
            reader = _Reader(path, file, min(path.stat().st_size, LARGEST))
            return _header(reader, path.stat().st_size)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from None


class _Reader:
    """Reads numbers and strings one after the other, none beyond `end`."""

    def __init__(self, path: Path, file: BinaryIO, end: int) -> None:
        self.path, self.file, self.end = path, file, end
        self.at, self.elements = 4, 0

    def damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is a damaged GGUF file: {why}.")

    def bytes(self, count: int, what: str) -> bytes:
        if count > self.end - self.at:
            raise self.damaged(f"at byte {self.at}, {what} of {count:,} bytes reaches beyond the file or its header")
        self.at += count
        return self.file.read(count)

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str) -> str:
        content = self.bytes(self.number("Q", what), what)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"before byte {self.at}, {what} is not UTF-8 text") from None

    def value(self, kind: int, key: str) -> Any:
        what = f"the value of {key!r}"
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            raise self.damaged(f"{key!r} is of type {kind}, which the format does not have")
        inner, count = self.number("I", what), self.number("Q", what)
        if inner == ARRAY:
            raise self.damaged(f"{key!r} is an array of arrays, which no reader takes")
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise self.damaged(f"its arrays have more than {MOST_ELEMENTS:,} elements, {count:,} of them in {key!r}")
        if inner not in SCALARS:
            return [self.value(inner, key) for _ in range(count)]
        width = struct.calcsize(f"<{SCALARS[inner]}")
        return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.bytes(count * width, what)))


def _header(reader: _Reader, size: int) -> Header:
    version = reader.number("I", "the version")
    if version and not version & 0xFFFF:
        raise ArtifactError(f"{reader.path} is big-endian, and only little-endian GGUF files are read.")
    if version not in VERSIONS:
        raise ArtifactError(
            f"{reader.path} is GGUF of version {version}; versions {' and '.join(map(str, VERSIONS))} are read."
        )
    tensors, keys = reader.number("Q", "the number of tensors"), reader.number("Q", "the number of keys")
    for count, what in ((tensors, "tensors"), (keys, "metadata keys")):
        if count > MOST_ENTRIES:
            raise reader.damaged(f"it says that it has {count:,} {what}; the most that are read are {MOST_ENTRIES:,}")
    metadata = _named(
        reader, keys, "metadata key", lambda key: reader.value(reader.number("I", f"the type of {key!r}"), key)
    )
    if (count := metadata.get("split.count", 1)) != 1:
        raise ArtifactError(
            f"{reader.path} is one of {count} files of a model; merge them with `llama-gguf-split --merge`, and give the file "
            "that it writes."
        )
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise reader.damaged(f"general.alignment is {str(alignment)[:20]}, no power of two from 8 to 65,536")
    described = _named(reader, tensors, "tensor", lambda name: _described(reader, name))
    data = -(-reader.at // alignment) * alignment
    return Header(metadata, _placed(reader, described, data, alignment, size))


def _named(reader: _Reader, count: int, what: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """Read that many things, each after its name; no two have the same."""
    found: dict[str, Any] = {}
    for _ in range(count):
        name = reader.text(f"the name of a {what}")
        if name in found:
            raise reader.damaged(f"{what} {name!r} is there twice")
        found[name] = read(name)
    return found


def _described(reader: _Reader, name: str) -> tuple[tuple[int, ...], int, int]:
    """The shape, the type and the offset of a tensor."""
    what = f"tensor {name!r}"
    count = reader.number("I", what)
    if not 1 <= count <= MOST_DIMENSIONS:
        raise reader.damaged(f"{what} has {count:,} dimensions; there are one to {MOST_DIMENSIONS}")
    shape = tuple(reader.number("Q", what) for _ in range(count))[::-1]
    kind, offset = reader.number("I", what), reader.number("Q", what)
    if kind not in KINDS:
        raise ArtifactError(f"{reader.path}: {what} is stored in a way that is not known here (type {kind}).")
    if 0 in shape or shape[-1] % KINDS[kind][1]:
        raise reader.damaged(
            f"{what} of shape {shape} is not made of blocks of {KINDS[kind][1]} as {KINDS[kind][0]} is"
        )
    return shape, kind, offset


def _placed(
    reader: _Reader, described: dict[str, tuple[tuple[int, ...], int, int]], data: int, alignment: int, size: int
) -> dict[str, Tensor]:
    """The tensors with where they lie, each within the file and none on another."""
    placed = {}
    for name, (shape, kind, offset) in described.items():
        title, weights, width = KINDS[kind]
        start = data + offset
        end = start + math.prod(shape) // weights * width
        if offset % alignment:
            raise reader.damaged(f"tensor {name!r} begins at {offset:,}, which is no multiple of {alignment}")
        if end > size:
            raise reader.damaged(f"tensor {name!r} ends at byte {end:,}, and the file has {size:,}")
        placed[name] = Tensor(shape, title, start, end)
    last, before = "", 0
    for name, tensor in sorted(placed.items(), key=lambda item: item[1].start):
        if tensor.start < before:
            raise reader.damaged(f"tensors {last!r} and {name!r} lie on each other")
        last, before = name, tensor.end
    return placed
