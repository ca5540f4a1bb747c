"""Which records two roles of a recipe's data have in common, by what the records hold and not by what they are called."""

from __future__ import annotations

import hashlib
import io
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from zoo.data.dataset import Dataset, Sample, content_hash

TEST = "test"
DERIVED = ("text", "split")  # what a reference or a file adds to the fields of a record, or takes from among them


@dataclass(frozen=True)
class Overlap:
    """Records of one role that another holds as well."""

    role: str
    other: str
    shared: int
    records: int  # of `role`, all of them

    @property
    def of_test(self) -> bool:
        """Whether what is measured was also learnt from."""
        return TEST in (self.role, self.other)

    def __str__(self) -> str:
        many = self.records != 1
        which = f"{self.shared:,} of the {self.records:,} records" if many else "The only record"
        said = f"{which} of {self.role} {'is' if self.shared == 1 else 'are'} also in {self.other}"
        return said + (": its figures are not of held-out data." if self.of_test else ".")


def overlaps(data: Mapping[str, Dataset]) -> tuple[Overlap, ...]:
    """Return what any two roles share, that of the test data first; records without content are not counted.

    Two records are the same when their pictures and prompts are, whatever they are labelled, or, without pictures, the
    text that a prompt and its answer make, whatever its white space. Records without either are compared by all fields.
    """
    if len(data) < 2:
        return ()
    forms = {frozenset(_form(value) for sample in records for value in _media(sample)) for records in data.values()}
    decoded = len(forms - {frozenset()}) > 1
    bare = any("text" not in sample.fields and not _media(sample) for records in data.values() for sample in records)
    contents = {
        role: [_contents(sample, decoded=decoded, bare=bare) for sample in records] for role, records in data.items()
    }
    held = {role: set[bytes]().union(*some) for role, some in contents.items()}
    shared = []
    for first, second in combinations(sorted(data, key=lambda role: role == TEST), 2):
        count = sum(not content.isdisjoint(held[first]) for content in contents[second])
        if count:
            shared.append(Overlap(second, first, count, len(data[second])))
    return tuple(sorted(shared, key=lambda overlap: not overlap.of_test))


def _contents(sample: Sample, *, decoded: bool, bare: bool) -> set[bytes]:
    """Hashes of what a record holds, any of which makes another one the same; none where it holds nothing.

    Args:
        decoded: compare pictures by their pixels, since those of one role are files of another format, or none.
        bare: compare all fields too, since some records have neither a text nor a picture.
    """
    fields = sample.fields
    prompt, text = (str(fields.get(name) or "") for name in ("prompt", "text"))
    found = set()
    if media := _media(sample):
        pictures = [_pixels(value) if decoded else content_hash(value) for value in media]
        found.add(_hash("picture", [_letters(prompt), *pictures]))
    elif _letters(text):
        found.add(_hash("text", _letters(prompt + text)))
    own = {name: value for name, value in fields.items() if name not in DERIVED}
    if bare and own:
        found.add(_hash("fields", own))
    return found


def _media(sample: Sample) -> list[Any]:
    """The pictures of a record, or whatever else of it is no plain value."""
    return [value for value in sample.fields.values() if isinstance(value, bytes | Path) or hasattr(value, "tobytes")]


def _form(value: Any) -> str:
    """How a picture is kept: the first bytes of its file, which tell formats apart, or "pixels"."""
    if isinstance(value, Path):
        with value.open("rb") as file:
            return file.read(3).hex()
    return value[:3].hex() if isinstance(value, bytes) else "pixels"


def _pixels(value: Any) -> str:
    """A hash of the pixels of a picture; of its content where it cannot be decoded."""
    from PIL import Image

    try:
        if isinstance(value, bytes | Path):
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as file:
                picture = file.convert("RGB")
        else:
            picture = (value if isinstance(value, Image.Image) else Image.fromarray(value)).convert("RGB")
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError, Image.DecompressionBombError):
        return content_hash(value)
    return content_hash(picture) + str(picture.size)


def _letters(text: str) -> str:
    """A text without its white space, each character written one way."""
    return unicodedata.normalize("NFC", "".join(text.split()))


def _hash(kind: str, content: Any) -> bytes:
    written = json.dumps([kind, content], sort_keys=True, default=content_hash)
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).digest()
