"""The Python standard library's own source as text: real code on every machine that runs Python.

A record is one source file. The split is by whole top-level module, chosen by a hash of its name, so that it does not
depend on the Python version or on which modules a distribution ships: "test" holds the modules whose hash falls into
one of 16 buckets, "train" all others. Tests, generated tables (`encodings`, `pydoc_data`) and installed packages are
left out. Licence of the text: PSF-2.0.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from zoo.data.dataset import Sample

LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
    "lib2to3",
    "__phello__",
}
BUCKETS = 16


class Stdlib:
    """Data source "stdlib": splits "train" and "test"."""

    splits = ("train", "test")

    def records(self, split: str) -> Iterator[Sample]:
        """Yield the source files of a split in path order; `where` is the path below the library."""
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            place = path.relative_to(root)
            if LEFT_OUT.intersection(place.parts) or held_out(place.parts[0]) != (split == "test"):
                continue
            try:
                with tokenize.open(path) as file:
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError, OSError):  # a handful of files are broken on purpose
                continue
            if text.strip():
                yield Sample({"text": text}, place.as_posix())


def held_out(module: str) -> bool:
    """Whether a top-level module ("json", "tarfile.py") belongs to the test split."""
    return int(hashlib.sha256(module.removesuffix(".py").encode()).hexdigest(), 16) % BUCKETS == 0
