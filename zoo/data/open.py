"""Data by name, by path or by hub id, with splits and slices, fingerprinted, every record traceable to its place.

    stdlib:train[:128]        a named source, a split, the first 128 records
    notes/                    every text file below a directory, one record each
    photos/                   every image below a directory; the folder it lies in is its label and text
    corpus.jsonl:train        one JSON object a line, its "text" field; an "image" is a path from the file's folder
    pairs.parquet?text=body   another field as the text
    hub:org/name:test         a data set of the hub, when online (or cached)

A source's name wins over a file of that name; "./stdlib" means the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError, nearest

if TYPE_CHECKING:
    from zoo.data.dataset import Source


TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


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
        match = re.fullmatch(
            r"(?P<source>.+?)(?:\?text=(?P<field>[\w.-]+))?(?::(?P<split>[\w-]+))?"
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
            match["source"], match["split"] or "", match["field"] or "text", match["start"] or "", match["stop"] or ""
        )

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
    try:
        path = Path(base or ".") / Path(reference.source).expanduser()
        there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{text!r} is not a path that can be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    from zoo.plugins.names import is_known

    samples: Sequence[Sample]
    # a plugin and its source rather than a source and its split
    if is_known("data", f"{reference.source}:{reference.split}"):
        reference = replace(reference, source=f"{reference.source}:{reference.split}", split="")
    if reference.source.startswith("hub:"):
        samples = _from_hub(reference)
    elif there and not is_known("data", reference.source):
        samples = _from_path(path, reference)
    else:
        samples = _from_source(reference, path)
    cut = reference.cut(samples)
    if not cut:
        raise DataError(f"{text!r} holds no records" + (f" ({len(samples)} before the slice)." if samples else "."))
    return Dataset(text, cut)


def _from_source(reference: Reference, path: Path) -> Sequence[Sample]:
    from zoo.plugins.names import is_known, of_kind, resolve, why_unused

    if not is_known("data", reference.source):
        if reason := why_unused("data", reference.source):
            raise DataError(reason)
        names = of_kind("data")
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hub = f" A data set of the hub is written 'hub:{reference.source}'." if reference.source.count("/") == 1 else ""
        raise DataError(
            f"No data source or file called {reference.source!r}.{nearest(path.name, [*names, *beside])} "
            f"Sources: {', '.join(sorted(names))}; looked for a file at {path}.{hub}"
        )
    try:
        source: Source = resolve("data", reference.source)
    except RequestError as error:  # of several plugins' sources, none is meant more than another
        raise DataError(str(error)) from None
    split = reference.split or source.splits[0]
    if split not in source.splits:
        raise DataError(
            f"{reference.source!r} has no split {split!r}.{nearest(split, source.splits)} Splits: {', '.join(source.splits)}."
        )
    records = source.records(split)
    return records if isinstance(records, Sequence) else list(records)  # of a sequence, a slice makes only its own


def _from_path(path: Path, reference: Reference) -> list[Sample]:
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _from_datasets(lambda d: d.load_from_disk(str(path)), reference, str(path))
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if texts := [file for file in files if file.suffix in TEXT_SUFFIXES]:
            return _texts(texts, reference, path)
        if images := [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]:
            return _images(images, reference, path)
        raise DataError(
            f"{path} holds neither text files ({', '.join(TEXT_SUFFIXES)}) nor images ({', '.join(IMAGE_SUFFIXES[:3])}, ...)."
        )
    if path.suffix == ".jsonl":
        return _of_split(_from_jsonl(path), reference, path)
    if path.suffix == ".parquet":
        return _of_split(_from_parquet(path), reference, path)
    if path.suffix in TEXT_SUFFIXES:
        return _texts([path], reference, path)
    raise DataError(
        f"{path}: {path.suffix or 'no suffix'} is not a data format; use {', '.join(TEXT_SUFFIXES)}, .jsonl, .parquet, "
        "or a folder saved by Hugging Face datasets."
    )


def _texts(files: Sequence[Path], reference: Reference, path: Path) -> list[Sample]:
    """One record a file; files without a visible character are left out."""
    if reference.split:
        raise DataError(
            f"{path} is plain text, which has no split {reference.split!r}; use slices such as [:90%] and [90%:]."
        )
    return [sample for file in files if (sample := _text_file(file)).text.strip()]


def _images(files: Sequence[Path], reference: Reference, path: Path) -> list[Sample]:
    """One record an image, named by the folder it lies in; a split is the folder of that name."""
    if reference.split:
        files = [file for file in files if file.relative_to(path).parts[0] == reference.split]
        if not files:
            folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
            raise DataError(
                f"{path} has no folder {reference.split!r} of images.{nearest(reference.split, folders)} Folders: {', '.join(folders) or 'none'}."
            )
    return [Sample({"image": f, "text": f.parent.name, "label": f.parent.name}, str(f)) for f in files]


def _text_file(path: Path) -> Sample:
    try:
        return Sample({"text": path.read_text(encoding="utf-8")}, str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _from_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _json_object(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} of the line is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {error}.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    return record


def _from_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read with pyarrow itself: `datasets` would keep a copy of the file in its cache."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path} needs the pyarrow package: pip install 'zoo-compress[data]'.") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200].rstrip('.')}.") from None


def _of_split(records: Iterable[tuple[str, dict[str, Any]]], reference: Reference, path: Path) -> list[Sample]:
    """The records of a split, which their "split" field names; without a split asked for, all of them."""
    samples, splits = [], dict[str, None]()
    for where, record in records:
        if reference.split:
            if "split" not in record:
                raise DataError(
                    f"{where}: no field 'split', so it is not known whether the record is of split {reference.split!r}."
                )
            splits[str(record["split"])] = None
        if not reference.split or str(record["split"]) == reference.split:
            samples.append(_sample(_with_image(record, where, path.parent), where, reference.field))
    if splits and not samples:
        raise DataError(
            f"{path} has no split {reference.split!r}.{nearest(reference.split, splits)} Splits: {', '.join(splits)}."
        )
    return samples


def _with_image(record: dict[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """A record whose "image" is a path that exists, read from the folder its file lies in."""
    image = record.get("image")
    if not isinstance(image, str):
        return record
    file = folder / image
    if not file.is_file():
        raise DataError(f"{where}: the image {image!r} is not a file in {folder}.")
    return {**record, "image": file}


def _from_datasets(load: Any, reference: Reference, where: str, *, hint: str = "") -> list[Sample]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{where} needs the datasets package: pip install 'zoo-compress[data]'.") from None
    try:
        data = load(datasets)
    except Exception as error:
        raise DataError(f"{where} cannot be read: {' '.join(str(error).split())[:200].rstrip('.')}.{hint}") from None
    if isinstance(data, dict):
        split = reference.split or ("train" if "train" in data else next(iter(data), ""))
        if split not in data:
            raise DataError(
                f"{where} has no split {split!r}.{nearest(split, data)} Splits: {', '.join(data) or 'none'}."
            )
        data = data[split]
    elif reference.split:
        raise DataError(f"{where} has no splits; leave out ':{reference.split}'.")
    return [_sample(dict(row), f"{where}:{number}", reference.field) for number, row in enumerate(data, 1)]


def _from_hub(reference: Reference) -> list[Sample]:
    name = reference.source.removeprefix("hub:")
    hint = " Go online once (and unset HF_HUB_OFFLINE), or name a folder that `datasets` saved."
    from zoo.system.hub import no_telemetry

    with no_telemetry():
        return _from_datasets(lambda d: d.load_dataset(name), reference, reference.source, hint=hint)


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
