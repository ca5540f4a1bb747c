"""What a data reference says: a source, a split, the field that is the text, a slice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from zoo.data.dataset import Sample
from zoo.errors import DataError
from zoo.system.memory import limits, resident_bytes
from zoo.system.quantities import size

MOST = 2 * 2**30  # bytes that records of unknown number may take


@dataclass(frozen=True)
class Reference:
    """A parsed data reference."""

    source: str
    split: str = ""
    field: str = "text"  # that is the text; empty: the records have none
    start: str = ""
    stop: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        match = re.fullmatch(
            r"(?P<source>.+?)(?:\?text=(?P<field>[\w.-]*))?(?::(?P<split>[\w-]+))?"
            r"(?P<slice>\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?",
            text.strip(),
        )
        if not match:
            raise DataError(
                f"{text!r} is not a data reference; write for example 'stdlib:train[:128]' or 'texts.jsonl'."
            )
        wrong = re.search(r"\[[^\[\]/]*:[^\[\]/]*\]$", match["source"])
        if wrong and not match["slice"]:
            raise DataError(f"{text!r}: {wrong[0]} is not a slice; write [:128], [5:], [10:20] or [:10%].")
        return cls(
            match["source"],
            match["split"] or "",
            "text" if match["field"] is None else match["field"],
            match["start"] or "",
            match["stop"] or "",
        )

    def cut(self, samples: Iterable[Sample], *, bounded: bool = True) -> tuple[Sequence[Sample], int]:
        """Return the records of the slice, and how many there are as far as they had to be read.

        A slice that ends at a number is read that far. A percentage or an open end needs all records, of which no more
        than MOST bytes are read where nothing bounds their number.
        """
        if isinstance(samples, Sequence):
            count = len(samples)
            return samples[_position(self.start, count, 0) : _position(self.stop, count, count)], count
        if self.stop.isdecimal() and not self.start.endswith("%"):
            first, count, wanted = int(self.start or 0), 0, []
            for count, sample in enumerate(islice(samples, int(self.stop)), 1):
                if count > first:
                    wanted.append(sample)
            return wanted, count
        return self.cut(list(samples) if bounded else self._whole(samples))

    def _whole(self, samples: Iterable[Sample]) -> list[Sample]:
        """Read records of which nothing says how many there are; a source without an end is refused, not read for ever."""
        before, most = resident_bytes(), min(MOST, limits()[0].left // 2)
        records: list[Sample] = []
        for number, sample in enumerate(samples, 1):
            records.append(sample)
            if number % 64 == 0 and resident_bytes() - before > most:
                raise DataError(
                    f"{self.source!r} still goes on after {number:,} records and {size(most)}, and may have no end: say "
                    f"how many to read, such as '{self.source}{':' if self.split else ''}{self.split}[:{number}]'."
                )
        return records


def _position(text: str, length: int, default: int) -> int:
    if not text:
        return default
    return length * int(text[:-1]) // 100 if text.endswith("%") else int(text)
