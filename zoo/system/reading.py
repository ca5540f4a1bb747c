"""Reading small files that anybody may have written: nothing hangs, nothing huge is read, and what is wrong is a sentence."""

from __future__ import annotations

import stat
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from zoo.errors import ZooError

Made = TypeVar("Made")

MOMENT = 2.0  # seconds, the coarsest clock of a file system
LARGEST = 2**20  # bytes of a file that a person writes
LARGEST_DATA = 2**26  # bytes of one that a program writes: a manifest, a config
DOTS = 200  # in one line: tomllib takes time and memory with the square of the dots in a key


LFS = b"version https://git-lfs.github.com/"  # how a file begins that `git clone` leaves without Git LFS


class Kept(Generic[Made]):
    """What was made of files, each as long as it is the file it was: of the same inode, size and time of change.

    A file that was changed a moment ago may be changed again within the resolution of its clock, and is read anew.
    """

    def __init__(self, most: int = 64) -> None:
        self.most, self.made = most, dict[tuple[str, int, int, int], Made]()

    def of(self, path: Path, make: Callable[[], Made]) -> Made:
        status = path.stat()
        if time.time() - status.st_mtime < MOMENT:
            return make()
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self.made:
            made = make()
            while len(self.made) >= self.most:
                self.made.pop(next(iter(self.made)), None)
            self.made[key] = made
        return self.made[key]


_texts = Kept[bytes]()


def lfs_pointer(path: Path, beginning: bytes | None = None) -> str:
    """Say that `path` only points to a file that Git LFS would fetch, or return "".

    Args:
        beginning: of the file, where it has been read.
    """
    if beginning is None:
        with path.open("rb") as file:
            beginning = file.read(len(LFS))
    if not beginning.startswith(LFS):
        return ""
    return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or fetch the file again"


def text_of(path: Path, *, error: type[ZooError], most: int = LARGEST) -> str:
    """Read a small file; what is no file is not opened, since that could hang, and what is huge is not read.

    Raises:
        ZooError: of the kind `error`: it is not there, no file, larger than `most` bytes, or not text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a file.")
        if status.st_size > most:
            raise error(f"{path} has {status.st_size:,} bytes, and {most:,} are the most that is read.")
        read = partial(_content, path, status.st_size)
        content = _texts.of(path, read) if status.st_size <= LARGEST else read()
        if pointer := lfs_pointer(path, content):
            raise error(f"{pointer}.")
        return content.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")  # some editors begin with a BOM
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{path} cannot be read: byte {reason.start} is not UTF-8 text.") from None


def _content(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def toml_of(text: str, path: Path, *, error: type[ZooError]) -> dict[str, Any]:
    """Parse TOML, within bounds of time and memory; `path` is for the sentence.

    Raises:
        ZooError: of the kind `error`: it is not TOML, or nested too deeply.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > DOTS:
            raise error(
                f"{path}, line {number}: more than {DOTS} dots in one line; write long lists over several lines."
            )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{path} is nested too deeply to be read.") from None
    except ValueError as reason:  # of tomllib, or of a number with more digits than Python reads
        raise error(f"{path} is not valid TOML: {reason}.") from None
