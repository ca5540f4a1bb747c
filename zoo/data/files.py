"""Records of a file, read as they are asked for, each with its place: text, JSON, JSON lines, CSV and Parquet.

A record's "image" becomes a path that exists, or the bytes of a picture.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.data.dataset import Sample
from zoo.data.reference import Reference
from zoo.errors import DataError, nearest
from zoo.system.reading import lfs_pointer

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BOM = b"\xef\xbb\xbf"  # what Windows programs begin a UTF-8 file with
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field; Python's own limit is 131,072

Places = Iterator[tuple[str, dict[str, Any]]]  # each record with where it is, such as "corpus.jsonl:12"


def samples_of(files: Iterable[Path], reference: Reference, path: Path) -> Iterator[Sample]:
    """The records of data files; of a split, those that their "split" field names. `path` is what the reference names."""
    splits, matched = dict[str, None](), False
    for file in files:
        for where, record in records_of(file):
            if reference.split:
                if "split" not in record:
                    raise DataError(
                        f"{where}: no field 'split', so it is not known whether the record is of split {reference.split!r}."
                    )
                splits[str(record["split"])] = None
                if str(record["split"]) != reference.split:
                    continue
            matched = True
            yield sample_of(with_image(record, where, file.parent), where, reference.field)
    if splits and not matched:
        raise DataError(
            f"{path} has no split {reference.split!r}.{nearest(reference.split, splits)} Splits: {', '.join(splits)}."
        )


def text_of(path: Path) -> Sample:
    """A text file as one record."""
    try:
        _require_content(path)
        return Sample({"text": path.read_text(encoding="utf-8").removeprefix("\ufeff")}, str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def records_of(path: Path) -> Places:
    """The records of a data file as they stand."""
    readers = {".jsonl": _from_jsonl, ".ndjson": _from_jsonl, ".json": _from_json, ".csv": _from_csv, ".tsv": _from_csv}
    try:
        _require_content(path)
        yield from readers.get(path.suffix.lower(), _from_parquet)(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def sample_of(record: dict[str, Any], where: str, field: str) -> Sample:
    """A record whose `field` is its text; a picture without text is called what its label says.

    A pair of sentences needs no text. Without a field the record stays as it is, for what reads fields of its own.
    """
    if not field:
        return Sample(record, where)
    if field == "text" and "text" not in record and "image" in record and isinstance(record.get("label"), int | str):
        return Sample({**record, "text": str(record["label"])}, where)
    if field == "text" and "text" not in record and Sample(record, where).is_pair:
        return Sample(record, where)
    if field not in record:
        raise DataError(
            f"{where}: no field {field!r}.{nearest(field, record)} Fields: {', '.join(map(str, record)) or 'none'}; "
            "name another with '?text=FIELD', or none with '?text='."
        )
    if not isinstance(record[field], str):
        raise DataError(f"{where}: {field!r} is {type(record[field]).__name__}, not text.")
    return Sample({**record, "text": record[field]}, where)


def with_image(record: dict[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """A record whose "image" is the bytes of a picture, or a path that exists, read from the folder its file lies in.

    Hugging Face's data sets write {"bytes", "path"}, and name a picture beside metadata.csv in "file_name".
    """
    image = record.get("image")
    if "image" not in record and Path(str(record.get("file_name", ""))).suffix.lower() in IMAGE_SUFFIXES:
        image = record["file_name"]
    if isinstance(image, Mapping) and image and image.keys() <= {"bytes", "path"}:
        if isinstance(image.get("bytes"), bytes) and image["bytes"]:
            return {**record, "image": image["bytes"]}
        image = image.get("path")
        if not isinstance(image, str) or not image:
            raise DataError(f"{where}: the image holds neither bytes nor the path of a file.")
    if not isinstance(image, str):
        return record
    file = folder / image
    if "\0" in image or not file.is_file():
        raise DataError(f"{where}: the image {image!r} is not a file in {folder}.")
    return {**record, "image": file}


def _require_content(path: Path) -> None:
    """Refuse what is no file, which could hang, and what Git left in place of one."""
    if not path.is_file():
        raise DataError(f"{path} is not a file.")
    if pointer := lfs_pointer(path):
        raise DataError(f"{pointer}.")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            yield line if number else line.removeprefix(BOM)


def _from_jsonl(path: Path) -> Places:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"{path}:{number}", _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _from_json(path: Path) -> Places:
    """A list of objects, an object that holds one list of them, or, as the hub often has it, JSON lines."""
    content = path.read_bytes().removeprefix(BOM)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        first, *more = content.strip().split(b"\n", 1)
        if more and _is_object(first):
            yield from _from_jsonl(path)
            return
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{path}: byte {error.start} is not UTF-8 text.") from None
        raise DataError(f"{path} is not JSON: {error}.") from None
    if isinstance(document, dict):
        lists = [name for name, value in document.items() if isinstance(value, list)]
        if len(lists) != 1:
            found = f"{len(lists)} lists ({', '.join(lists)})" if lists else "no list"
            raise DataError(f"{path}: expected a list of objects, or an object with one such list; this has {found}.")
        document = document[lists[0]]
    if not isinstance(document, list):
        raise DataError(f"{path}: expected a list of objects, found {type(document).__name__}.")
    for number, record in enumerate(document, 1):
        yield f"{path}:{number}", _object(record, f"{path}:{number}")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} of the line is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object: {error}.") from None


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    return record


def _from_csv(path: Path) -> Places:
    """The first row names the fields; all values are texts. A record is where its first line is."""

    def decoded() -> Iterator[str]:
        for number, line in enumerate(_lines(path), 1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: byte {error.start} of the line is not UTF-8 text.") from None

    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        header = next(_lines(path), b"")
        tabs = path.suffix.lower() == ".tsv"
        # what spreadsheets write in countries whose numbers have commas
        delimiter = "\t" if tabs else ";" if b";" in header and b"," not in header else ","
        rows = csv.reader(decoded(), delimiter=delimiter, strict=True)
        names = next(rows, [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}:1: the header names {', '.join(map(repr, twice))} twice.")
        line = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(names):
                raise DataError(f"{path}:{line}: {len(row)} values, where the header names {len(names)} fields.")
            if row:
                yield f"{path}:{line}", dict(zip(names, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: not CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)


def _from_parquet(path: Path) -> Places:
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
