"""Data by name, by path or by hub id, with splits and slices, fingerprinted, every record traceable to its place.

    stdlib:train[:128]        a named source, a split, the first 128 records
    notes/                    every text file below a directory, one record each
    corpus.jsonl:train        one JSON object a line, its "text" field
    pairs.parquet?text=body   another field as the text
    hub:org/name:test         a data set of the hub, when online (or cached)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from zoo.errors import DataError, nearest

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")


@dataclass(frozen=True)
class Sample:
    """One record: its fields, and where it came from ("corpus.jsonl:12")."""

    fields: dict[str, Any]
    where: str

    @property
    def text(self) -> str:
        return str(self.fields["text"])


class Source(Protocol):
    """A named data source of a plugin."""

    splits: tuple[str, ...]

    def records(self, split: str) -> Iterable[Sample]: ...


class Dataset(Sequence[Sample]):
    """An immutable list of samples with a name and a sha256 fingerprint of its content."""

    def __init__(self, name: str, samples: Iterable[Sample]) -> None:
        self.name = name
        self.samples = tuple(samples)
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps(sample.fields, sort_keys=True, default=_content_hash).encode())
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


@dataclass(frozen=True)
class Reference:
    """A parsed data reference."""

    source: str
    split: str = ""
    field: str = "text"
    start: str = ""
    stop: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        found = re.fullmatch(
            r"(?P<source>.+?)(?:\?text=(?P<field>[\w.-]+))?(?::(?P<split>[\w-]+))?"
            r"(?:\[(?P<start>\d*%?):(?P<stop>\d*%?)\])?",
            text.strip(),
        )
        if not found:
            raise DataError(f"{text!r} is not a data reference; write for example 'stdlib:train[:128]' or 'texts.jsonl'.")
        return cls(found["source"], found["split"] or "", found["field"] or "text", found["start"] or "", found["stop"] or "")

    def cut(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        if not self.start and not self.stop:
            return samples
        return samples[_position(self.start, len(samples), 0) : _position(self.stop, len(samples), len(samples))]


def open_data(text: str, *, base: Path | None = None) -> Dataset:
    """Open the data that `text` refers to; relative paths start at `base` (a recipe's folder) or the working directory.

    Raises:
        DataError: no such source, split or file; an empty result; or a bad record, named by file and line.
    """
    reference = Reference.parse(text)
    path = Path(base or ".") / Path(reference.source).expanduser()
    if reference.source.startswith("hub:"):
        samples = _from_hub(reference)
    elif path.exists():
        samples = _from_path(path, reference)
    else:
        samples = _from_source(reference, path)
    cut = reference.cut(samples)
    if not cut:
        raise DataError(f"{text!r} holds no records" + (f" ({len(samples)} before the slice)." if samples else "."))
    return Dataset(text, cut)


def _from_source(reference: Reference, path: Path) -> list[Sample]:
    from zoo import registry

    names = registry.names("data")
    if reference.source not in names:
        raise DataError(
            f"No data source or file called {reference.source!r}.{nearest(reference.source, names)} "
            f"Sources: {', '.join(sorted(names))}; looked for a file at {path}."
        )
    source: Source = registry.data_source(reference.source)
    split = reference.split or source.splits[0]
    if split not in source.splits:
        raise DataError(
            f"{reference.source!r} has no split {split!r}.{nearest(split, source.splits)} Splits: {', '.join(source.splits)}."
        )
    return list(source.records(split))


def _from_path(path: Path, reference: Reference) -> list[Sample]:
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _from_datasets(lambda d: d.load_from_disk(str(path)), reference, str(path))
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path} holds no text files ({', '.join(TEXT_SUFFIXES)}).")
        return [_text_file(file) for file in files]
    if path.suffix == ".jsonl":
        return list(_from_jsonl(path, reference))
    if path.suffix == ".parquet":
        return _from_datasets(
            lambda d: d.load_dataset("parquet", data_files={"train": str(path)}, split="train"), reference, str(path)
        )
    if path.suffix in TEXT_SUFFIXES:
        return [_text_file(path)]
    raise DataError(
        f"{path}: {path.suffix or 'no suffix'} is not a data format; use {', '.join(TEXT_SUFFIXES)}, .jsonl, .parquet, "
        "or a folder saved by Hugging Face datasets."
    )


def _text_file(path: Path) -> Sample:
    try:
        return Sample({"text": path.read_text(encoding="utf-8")}, str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text.") from None


def _from_jsonl(path: Path, reference: Reference) -> Iterator[Sample]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{where}: not a JSON object: {error}.") from None
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}.")
            if reference.split and str(record.get("split", reference.split)) != reference.split:
                continue
            yield _sample(record, where, reference.field)


def _from_datasets(load: Any, reference: Reference, where: str) -> list[Sample]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{where} needs the datasets package: pip install 'zoo[data]'.") from None
    try:
        data = load(datasets)
    except Exception as error:
        raise DataError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if isinstance(data, dict):
        split = reference.split or ("train" if "train" in data else next(iter(data)))
        if split not in data:
            raise DataError(f"{where} has no split {split!r}.{nearest(split, data)} Splits: {', '.join(data)}.")
        data = data[split]
    return [_sample(dict(row), f"{where}:{number}", reference.field) for number, row in enumerate(data, 1)]


def _from_hub(reference: Reference) -> list[Sample]:
    name = reference.source.removeprefix("hub:")
    return _from_datasets(lambda d: d.load_dataset(name), reference, name)


def _sample(record: dict[str, Any], where: str, field: str) -> Sample:
    if field not in record:
        raise DataError(
            f"{where}: no field {field!r}.{nearest(field, record)} Fields: {', '.join(map(str, record)) or 'none'}; "
            "name another with '?text=FIELD'."
        )
    if not isinstance(record[field], str):
        raise DataError(f"{where}: {field!r} is {type(record[field]).__name__}, not text.")
    return Sample({**record, "text": record[field]}, where)


def _position(text: str, length: int, default: int) -> int:
    if not text:
        return default
    return length * int(text[:-1]) // 100 if text.endswith("%") else int(text)


def _content_hash(value: Any) -> str:
    content = value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()
    return hashlib.sha256(content).hexdigest()
