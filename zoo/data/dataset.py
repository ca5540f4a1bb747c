"""Data: records, each traceable to its place, in data sets with a fingerprint of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from zoo.errors import DataError, RequestError
from zoo.system.unicode import require_unicode
from zoo.system.writing import sha256_of

PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Sample:
    """One record: its fields, and where it came from ("corpus.jsonl:12")."""

    fields: dict[str, Any]
    where: str

    @property
    def text(self) -> str:
        """
        Raises:
            DataError: the record has none.
        """
        if "text" not in self.fields:
            raise DataError(f"{self.where}: no field 'text'. Fields: {', '.join(map(str, self.fields)) or 'none'}.")
        return str(self.fields["text"])

    @property
    def is_pair(self) -> bool:
        """Whether the record is of two sentences, "sentence1" and "sentence2", as the STS benchmark calls them."""
        return all(name in self.fields for name in PAIR)

    @property
    def sentences(self) -> list[str]:
        """The two sentences of a pair, else the text.

        Raises:
            DataError: the record has none.
        """
        return [str(self.fields[name]) for name in PAIR] if self.is_pair else [self.text]

    @property
    def prompt(self) -> str:
        """What the text answers; "" where it answers nothing.

        Raises:
            DataError: the record's "prompt" is no text.
        """
        prompt = self.fields.get("prompt")
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"{self.where}: 'prompt' is {type(prompt).__name__}, not text.")
        return prompt or ""


@contextmanager
def naming_record(sample: Sample) -> Iterator[None]:
    """Say of what is wrong with a record where the record is."""
    try:
        yield
    except RequestError as error:
        said = str(error)
        raise DataError(said if said.startswith(sample.where) else f"{sample.where}: {said}") from None


class Source(Protocol):
    """A named data source of a plugin. What things are measured on ("test") has no record of another split."""

    splits: tuple[str, ...]  # the first is taken where none is named

    def records(self, split: str) -> Iterable[Sample]:
        """Return the records of a split, the same every time.

        A slice such as [:32] reads no more of them than it asks for. A sequence knows how many it holds; of anything else
        that is to be read to its end, at most 2 GiB are read.
        """


class Dataset(Sequence[Sample]):
    """An immutable list of samples with a name and a sha256 fingerprint of its content.

    Raises:
        DataError: a text is not Unicode, or a file cannot be read; names the record.
    """

    def __init__(self, name: str, samples: Iterable[Sample]) -> None:
        self.name = name
        self.samples = tuple(samples)
        digest = hashlib.sha256()
        for sample in self.samples:
            _require_unicode(sample)
            try:
                digest.update(json.dumps(sample.fields, sort_keys=True, default=content_hash).encode())
            except OSError as error:  # of a picture's file
                raise DataError(f"{sample.where}: {error.filename} cannot be read: {error.strerror}.") from None
            digest.update(b"\n")
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return Dataset(self.name, self.samples[index])
        return self.samples[index]

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} records, {self.fingerprint[:12]})"


def _require_unicode(sample: Sample) -> None:
    for name in ("text", "prompt", *PAIR):
        if isinstance(text := sample.fields.get(name), str):
            require_unicode(text, f"{sample.where}: the {name}", error=DataError)


def content_hash(value: Any) -> str:
    """The sha256 of what a field of a record holds, such as a picture or the path of one."""
    if isinstance(value, Path):
        return sha256_of(value)
    content = (
        value if isinstance(value, bytes) else value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
    )
    return hashlib.sha256(content).hexdigest()
