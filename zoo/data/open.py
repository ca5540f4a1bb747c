"""Data by name, by path or by hub id, with splits and slices, fingerprinted, every record traceable to its place.

    stdlib:train[:128]        a named source, a split, the first 128 records
    notes/                    every text file below a directory, one record each
    photos/                   every image below a directory; the folder it lies in is its label and text
    squad/:test               the data files of a directory; their names, or their "split" fields, say the split
    corpus.jsonl:train        one JSON object a line, its "text" field; an "image" is a path from the file's folder
    table.csv                 .json, .csv, .tsv and .parquet likewise
    pairs.parquet?text=body   another field as the text
    pairs.jsonl?text=         none: records for an evaluator that reads fields of its own
    hub:org/name:test         a data set of the hub, when online (or cached)

A source's name wins over a file of that name; "./stdlib" means the file. A slice that ends at a number reads no more than
it asks for; docs/data.md says the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.dataset import Dataset, Sample
from zoo.data.files import DATA_SUFFIXES, TEXT_SUFFIXES, sample_of, samples_of, with_image
from zoo.data.folders import samples_of_folder, texts_of
from zoo.data.reference import Reference
from zoo.errors import DataError, RequestError, nearest

if TYPE_CHECKING:
    from zoo.data.dataset import Source
    from zoo.plugins.declarations import Declared


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

    samples: Iterable[Sample]
    reference = _with_plugin(reference)
    if reference.source.startswith("hub:"):
        samples = _from_hub(reference)
    elif there and not is_known("data", reference.source):
        samples = _from_path(path, reference)
    else:
        samples = _from_source(reference, path)
    cut, count = reference.cut(samples, bounded=not is_known("data", reference.source))
    if not cut:
        raise DataError(f"{text!r} holds no records" + (f" ({count} before the slice)." if count else "."))
    return Dataset(text, cut)


def declared_source(text: str) -> Declared | None:
    """Return the declaration of the source that a reference names; None where it names a file or a data set of the hub."""
    from zoo.plugins.names import declaration

    try:
        return declaration("data", _with_plugin(Reference.parse(text)).source)
    except RequestError:
        return None


def _with_plugin(reference: Reference) -> Reference:
    """Take "x:y" for a plugin and its source, rather than for a source and its split, where there is such a source."""
    from zoo.plugins.names import is_known

    full = f"{reference.source}:{reference.split}"
    return replace(reference, source=full, split="") if is_known("data", full) else reference


def _from_source(reference: Reference, path: Path) -> Iterable[Sample]:
    from zoo.plugins import manager
    from zoo.plugins.names import is_known, of_kind, resolve, why_unused

    if not is_known("data", reference.source):
        full = f"{reference.source}:{reference.split}" if manager.is_installed(reference.source) else ""
        if reason := why_unused("data", full or reference.source):
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
    return source.records(split)


def _from_path(path: Path, reference: Reference) -> Iterable[Sample]:
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _from_datasets(lambda d: d.load_from_disk(str(path)), reference, str(path), folder=path)
        return samples_of_folder(path, reference)
    suffix = path.suffix.lower()
    if suffix in DATA_SUFFIXES:
        return samples_of([path], reference, path)
    if suffix in TEXT_SUFFIXES:
        return texts_of([path], reference, path)
    raise DataError(
        f"{path}: {path.suffix or 'no suffix'} is not a data format; use {', '.join((*TEXT_SUFFIXES, *DATA_SUFFIXES))}, "
        "or a folder saved by Hugging Face datasets."
    )


def _from_datasets(
    load: Any, reference: Reference, where: str, *, folder: Path | None = None, hint: str = ""
) -> Iterator[Sample]:
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
    return _rows(data, where, folder or Path(), reference.field)


def _rows(data: Any, where: str, folder: Path, field: str) -> Iterator[Sample]:
    """Rows of a data set; its pictures come decoded, or as {"bytes", "path"} where it says decode=False."""
    for number, row in enumerate(data, 1):
        place = f"{where}:{number}"
        record = with_image(dict(row), place, folder) if isinstance(row.get("image"), dict) else dict(row)
        yield sample_of(record, place, field)


def _from_hub(reference: Reference) -> Iterator[Sample]:
    name = reference.source.removeprefix("hub:")
    hint = " Go online once (and unset HF_HUB_OFFLINE), or name a folder that `datasets` saved."
    from zoo.system.hub import no_telemetry

    with no_telemetry():
        return _from_datasets(lambda d: d.load_dataset(name), reference, reference.source, hint=hint)
