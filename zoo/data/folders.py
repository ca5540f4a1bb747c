"""What of a folder is data: its data files, its images or its texts, and which of them a split means.

A folder is of one kind, since nothing says how two kinds belong together. Hidden files never count, nor does what is
about the data: a README, a licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.data.dataset import Sample
from zoo.data.files import DATA_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES, records_of, samples_of, text_of
from zoo.data.reference import Reference
from zoo.errors import DataError, nearest

ABOUT = re.compile(
    r"(readme|licen[sc]e|copying|notice|citation|changelog|contributing|code_of_conduct|datasheet|data(set)?_?card)"
    r"([._-].*)?",
    re.IGNORECASE,
)
# Data that is not read; beside it, texts are hardly what a folder is for.
UNREAD = (
    *(".arrow", ".feather", ".avro", ".orc", ".h5", ".hdf5", ".npy", ".npz", ".mat", ".pkl", ".pt", ".tfrecord"),
    *(".db", ".sqlite", ".xls", ".xlsx", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar"),
)
MODELS = ("zoo.json", "*/zoo.json", "model.safetensors", "model_index.json")  # of a saved model, and of a run's folder
SPLITS = {  # as Hugging Face's data sets read the names of files
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def samples_of_folder(folder: Path, reference: Reference) -> Iterable[Sample]:
    """The records of a folder.

    Raises:
        DataError: it holds nothing that is read, several kinds of it, or no such split.
    """
    _require_no_model(folder)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    about = [file for file in files if _is_about(file)]
    data, images, texts = (
        [file for file in files if file.suffix.lower() in suffixes and file not in about]
        for suffixes in (DATA_SUFFIXES, IMAGE_SUFFIXES, TEXT_SUFFIXES)
    )
    if data and images and not texts and _tell_of_images(data, reference):
        images = []
    kinds = {"data": data, "image": images, "text": texts}
    present = [kind for kind, some in kinds.items() if some]
    if len(present) > 1:
        held = " and ".join(
            f"{_counted(kinds[kind], f'{kind} file')} ({_named(kinds[kind], folder)})" for kind in present
        )
        raise DataError(
            f"{folder} holds {held}, and which of them are meant is not known: name a file or a folder in it."
        )
    if data:
        return _records(data, reference, folder)
    if images:
        return _images(images, reference, folder)
    if texts and (unread := [file for file in files if file.suffix.lower() in UNREAD]):
        raise DataError(
            f"{folder} holds {_named(unread, folder)}, which is not read, beside {_counted(texts, 'text file')} "
            f"({_named(texts, folder)}): unpack the data, or name a text file or a folder of them."
        )
    if not texts:
        there = f" There is: {_named(files, folder)}." if files else ""
        raise DataError(
            f"{folder} holds neither data files ({', '.join(DATA_SUFFIXES)}), text files ({', '.join(TEXT_SUFFIXES)}) "
            f"nor images ({', '.join(IMAGE_SUFFIXES[:3])}, ...).{there}"
        )
    inner = [file for file in about if file.suffix.lower() in TEXT_SUFFIXES and file.parent != folder]
    return texts_of(sorted([*texts, *inner]), reference, folder)


def _require_no_model(folder: Path) -> None:
    if model := next((file for pattern in MODELS for file in folder.glob(pattern)), None):
        raise DataError(
            f"{folder} holds a model ({model.relative_to(folder)}), not records; name a file or folder of data."
        )


def texts_of(files: Sequence[Path], reference: Reference, path: Path) -> Iterator[Sample]:
    """One record a file; files without a visible character are left out. A split is the files that name it."""
    if reference.split:
        files = [file for file in files if file != path and reference.split.lower() in _words(file, path)]
        if not files:
            raise DataError(
                f"{path} is plain text, which has no split {reference.split!r}; use slices such as [:90%] and [90%:]."
            )
    return (sample for file in files if (sample := text_of(file)).text.strip())


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


def _is_about(file: Path) -> bool:
    """Whether a file is about the data: a document, or what Hugging Face's `datasets` once noted of them."""
    records = file.suffix.lower() in (*DATA_SUFFIXES, *IMAGE_SUFFIXES)
    return file.name == "dataset_infos.json" or (not records and bool(ABOUT.fullmatch(file.name)))


def _tell_of_images(data: Sequence[Path], reference: Reference) -> bool:
    """Whether the records of data files name the images beside them, or can do without."""
    try:
        _, record = next(records_of(data[0]), ("", {}))
    except DataError:
        return False
    return not reference.field or not record.keys().isdisjoint({"image", "file_name", reference.field})


def _records(data: Sequence[Path], reference: Reference, folder: Path) -> Iterator[Sample]:
    """The records of data files; the files' names say of which split they are, else the records' "split"."""
    splits = {file: _split_of(file, folder) for file in data}
    named = sorted({split for split in splits.values() if split})
    asked = SPLITS.get(reference.split.lower(), reference.split)
    if asked:
        chosen = [file for file in data if splits[file] == asked or reference.split.lower() in _words(file, folder)]
        if not chosen and named:
            raise DataError(
                f"{folder} has no split {reference.split!r}.{nearest(reference.split, named)} Splits: {', '.join(named)}."
            )
    else:
        if named and (others := [file for file in data if not splits[file]]):
            raise DataError(
                f"{folder} holds files of splits ({', '.join(named)}) and files of none ({_named(others, folder)}): "
                f"name a split, such as '{folder}:{named[0]}', or a file in it."
            )
        wanted = "train" if "train" in named else next(iter(named), "")
        chosen = [file for file in data if splits[file] == wanted]
    _require_one_set(chosen or data, folder, parted=bool(named))
    return samples_of(chosen or data, replace(reference, split="") if chosen else reference, folder)


def _require_one_set(files: Sequence[Path], folder: Path, *, parted: bool) -> None:
    """Refuse several formats, and several folders with splits of their own: the same data twice, or several data sets."""
    formats = sorted({file.suffix.lower() for file in files})
    if len(formats) > 1:
        raise DataError(
            f"{folder} holds data files of several formats ({_named(files, folder)}), and which of them are meant is not "
            "known: name a file or a folder in it."
        )
    parents = (file.relative_to(folder).parent.parts for file in files)
    sets = sorted({"/".join(part for part in parts if part.lower() not in SPLITS) for parts in parents})
    if parted and len(sets) > 1:
        raise DataError(
            f"{folder} holds several data sets ({', '.join(name or folder.name for name in sets)}): name one of them, "
            f"such as '{folder / sets[-1]}'."
        )


def _split_of(file: Path, folder: Path) -> str:
    """The split a file's name says, else that of a folder it lies in; "" where none does."""
    return next((SPLITS[word] for word in _words(file, folder) if word in SPLITS), "")


def _words(file: Path, folder: Path) -> list[str]:
    """The words of a file's name, then those of the folders it lies in, from the inside out."""
    names = [file.stem, *reversed(file.relative_to(folder).parts[:-1])]
    return [word for name in names for word in (name.lower(), *re.split(r"[^a-z0-9]+", name.lower()))]


def _counted(files: Sequence[Path], what: str) -> str:
    return f"{len(files)} {what}{'' if len(files) == 1 else 's'}"


def _named(files: Sequence[Path], folder: Path) -> str:
    """The first files, by their names in the folder."""
    return ", ".join([*(str(file.relative_to(folder)) for file in files[:3]), *(["..."] if len(files) > 3 else [])])
