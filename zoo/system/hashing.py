"""Hashes of files: sha256 says which file it is; xxh3 of each chunk, that nothing damaged it, at the speed of memory.

xxh3 is no cryptographic hash: whoever wants to changes a file and keeps it. So what is fetched, and what a catalogue
pins, is checked by sha256.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 64 * 2**20  # bytes that have an xxh3 of their own
PIECE = 2**20  # bytes read at a time, of which a chunk has a whole number


def digests_of(content: Path | bytes) -> dict[str, Any]:
    """What a manifest says of a file: its "sha256", its "bytes", and the "xxh3" of each chunk."""
    whole = hashlib.sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        chunks = _chunks(file, whole.update)
        return {"sha256": whole.hexdigest(), "bytes": file.tell(), "xxh3": chunks}


def chunks_of(path: Path) -> list[str]:
    """The xxh3 of each chunk of a file."""
    with path.open("rb") as file:
        return _chunks(file, lambda _: None)


def _chunks(file: BinaryIO, see: Callable[[bytes], None]) -> list[str]:
    """The xxh3 of each chunk of an open file; `see` is given all that is read."""
    import xxhash

    chunks = []
    while piece := file.read(PIECE):
        chunk = xxhash.xxh3_128()
        while piece:
            see(piece)
            chunk.update(piece)
            piece = file.read(PIECE) if file.tell() % CHUNK else b""
        chunks.append(chunk.hexdigest())
    return chunks


class Chunks:
    """Bytes in memory, compared with the xxh3 of their chunks before they are used, from the first to the last."""

    def __init__(self, content: memoryview, hashes: Sequence[str]) -> None:
        self.content, self.hashes = content, hashes
        self.sound = 0  # how many chunks are

    def damaged(self, end: int) -> tuple[int, int] | None:
        """Compare all bytes before `end` that were not yet; return where the first damaged chunk begins and ends."""
        import xxhash

        while self.sound * CHUNK < end:
            first, last = self.sound * CHUNK, min(len(self.content), (self.sound + 1) * CHUNK)
            if xxhash.xxh3_128_hexdigest(self.content[first:last]) != self.hashes[self.sound]:
                return first, last
            self.sound += 1
        return None
