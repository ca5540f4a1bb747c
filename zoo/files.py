"""Writing so that nothing half-written is ever read: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `path` whole or not at all, replacing what was there."""
    with _draft(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_file(source: Path, path: Path) -> None:
    """Copy `source` to `path` whole or not at all, in pieces."""
    with source.open("rb") as original, _draft(path) as file:
        shutil.copyfileobj(original, file, 2**20)


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_unwritable(path: Path) -> str:
    """Say why nothing can be created at `path`, or return "". It is tried out: permission bits do not bind every user."""
    try:
        parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not parent.is_dir():
            return f"{parent} is a file"
        Path(tempfile.mkdtemp(dir=parent, prefix=".zoo.")).rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def sha256_of(path: Path) -> str:
    """Hash a file in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
