"""Which records two roles of a recipe's data have in common, by what the records hold and not by what they are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from zoo.data.dataset import Dataset, Sample, content_hash

TEST = "test"
LEARNT = ("prompt", "text", "image")  # the fields that make two records the same


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
    """Return what any two roles share, that of the test data first; records without content are not counted."""
    if len(data) < 2:
        return ()
    contents = {
        role: [content for sample in records if (content := _content(sample))] for role, records in data.items()
    }
    held = {role: set(some) for role, some in contents.items()}
    shared = []
    for first, second in combinations(sorted(data, key=lambda role: role == TEST), 2):
        count = sum(content in held[first] for content in contents[second])
        if count:
            shared.append(Overlap(second, first, count, len(data[second])))
    return tuple(sorted(shared, key=lambda overlap: not overlap.of_test))


def _content(sample: Sample) -> bytes:
    """A hash of what a record holds; empty where that is nothing."""
    fields = {name: sample.fields.get(name) for name in LEARNT}
    fields = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    if fields["image"] is None and not fields["text"]:
        return b""
    written = json.dumps(fields, sort_keys=True, default=content_hash)
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).digest()
