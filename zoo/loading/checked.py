"""Which files were found to have the sha256 of the catalogue: each is hashed before its first use, and not at every load.

What is remembered is a file as the system knows it: where it is, its inode, size and both times. Any write changes `ctime`,
which nobody can set, so that a file of another is not taken for the one that was hashed. A list that somebody else could have
written, or that is damaged, is none.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from json import dumps, loads
from pathlib import Path
from typing import Any

from zoo.errors import ArtifactError, OutputError
from zoo.system.reading import MOMENT, text_of
from zoo.system.writing import replace_file, sha256_of

MOST = 1000  # files; those checked last


def has_sha256(path: Path, expected: str) -> bool:
    """Whether a file has this sha256; it is read where that is not known already."""
    path = path.resolve()
    before, began = _state(path), time.time()
    if _known().get(str(path)) == [*before, expected]:
        return True
    if sha256_of(path) != expected:
        return False
    changed = max(before[-2:]) / 1e9
    if (
        _state(path) == before and changed < began - MOMENT
    ):  # later it may have been written twice in one tick of the clock
        _remember(path, [*before, expected])
    return True


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def checked_file() -> Path:
    """Where it is written.

    Raises:
        RuntimeError: this user has no home, and the environment names no other place.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "zoo" / "checked.json"


def _known() -> dict[str, list[Any]]:
    """What the file says; nothing where it is not there, damaged, or others can write it."""
    with suppress(RuntimeError, OSError, ArtifactError, ValueError, RecursionError):
        file = checked_file()
        if _own(file.parent) and _own(file) and isinstance(known := loads(text_of(file, error=ArtifactError)), dict):
            return known
    return {}


def _own(path: Path) -> bool:
    """Whether what is at `path`, no link, is this user's and nobody else can write it."""
    status = path.lstat()
    return hasattr(os, "geteuid") and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _remember(path: Path, found: list[Any]) -> None:
    """Write it down where that can be done; another process that writes at the same time only makes us check again."""
    with suppress(RuntimeError, OSError, OutputError):
        file = checked_file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _own(file.parent):
            known = {place: about for place, about in _known().items() if place != str(path) and Path(place).exists()}
            latest = [*known.items(), (str(path), found)][-MOST:]
            replace_file(file, dumps(dict(latest), indent=1) + "\n")
