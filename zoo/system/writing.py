"""Writing so that nothing half-written is ever read: temporary name, fsync, rename. A write that fails is one sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from zoo.errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL, errno.EROFS, errno.EFBIG)
# how tokenizers and safetensors say which error the system gave
IN_RUST = re.compile(r"os error (\d+)|Os \{ code: (\d+)")


def replace_file(path: Path, content: bytes | str | Iterable[Buffer], *, size: int = 0) -> None:
    """Write `path` whole or not at all, replacing what was there.

    Args:
        content: the whole, or pieces of it, so that it need not lie in memory; then `size` says how much they are.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    data = content.encode() if isinstance(content, str) else content
    pieces = [data] if isinstance(data, bytes) else data
    with writing(path, size=len(data) if isinstance(data, bytes) else size), _draft(path) as file:
        file.writelines(pieces)


@contextmanager
def writing(path: Path, *, size: int = 0) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into one sentence.

    Args:
        size: how many bytes it needs, where that is known.

    Raises:
        OutputError: names `path` and the reason; on a full disk, what is needed and what is free.
    """
    try:
        yield
    except Exception as error:
        code = _code(error)
        if isinstance(error, OutputError) or not code:
            raise
        raise OutputError(f"{path} cannot be written: {_reason(code, path, size)}.") from error


def refused(error: Exception) -> str:
    """Say that nothing more can be written where `error` says so, or return ""."""
    code = _code(error)
    return os.strerror(code) if code in UNWRITABLE else ""


def _code(error: Exception) -> int:
    """The number of the system's error behind `error`, or 0."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = IN_RUST.search(str(error))
    return int(match[1] or match[2]) if match else 0


def _reason(code: int, path: Path, size: int) -> str:
    if code == errno.ENOENT and not path.parent.is_dir():
        return f"the directory {path.parent} is gone"
    if code not in FULL:
        return os.strerror(code)
    try:
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
    except OSError:
        return os.strerror(code)
    needed = f"{size:,} bytes needed, " if size else ""
    return f"{os.strerror(code)} ({needed}{free:,} free)"


@contextmanager
def _draft(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when it is complete."""
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
    sync(path.parent)


def sync(path: Path) -> None:
    """Make the content of a file, or the renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_unwritable(path: Path) -> str:
    """Say why nothing can be created at `path`, or return "". It is tried out: permission bits do not bind every user."""
    for folder in (path.absolute(), *path.absolute().parents):
        if not_a_directory(folder):
            return f"{folder} is a file"
        there = inode(folder)
        try:
            tempfile.TemporaryFile(dir=folder).close()  # where the system can, without a name that a kill would leave
            break
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) or (there and inode(folder) == there):
                return error.strerror or str(error)
            # it is not there (any more): it can be made where something can be made above it
    return ""


def not_a_directory(path: Path) -> bool:
    """Whether something else than a directory is at `path`.

    It is asked once: between `exists` and `is_dir` another process may take a directory away and put its own there.
    """
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def inode(path: Path) -> int:
    """The number of what is at `path`, 0 for nothing: another one afterwards means that it was replaced meanwhile."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def sha256_of(path: Path) -> str:
    """Hash a file in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
