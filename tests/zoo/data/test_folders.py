"""Folders as people have them: what of them is data, which split a file is of, and what cannot be told apart."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zoo.data.open import open_data
from zoo.errors import DataError
from zoo.family.diffusion.captions import image_bytes
from zoo.family.vision.images import read_image

CARD = "---\nlicense: mit\n---\n# A data set\n"


def write(folder: Path, files: dict[str, Sequence[str] | str]) -> Path:
    """Write files: a text as it is, a list of texts as records in the format of the file's name."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content)
        elif file.suffix == ".jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in content))
        elif file.suffix == ".json":
            file.write_text(json.dumps([{"text": text} for text in content]))
        elif file.suffix == ".csv":
            file.write_text("text\n" + "".join(f"{text}\n" for text in content))
        else:
            table(file, {"text": list(content)})
    return folder


def table(file: Path, columns: dict[str, Any]) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(columns), file)
    return file


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def texts(reference: str | Path) -> list[str]:
    return [sample.text for sample in open_data(str(reference))]


def refusal(reference: str | Path, base: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(reference))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(base), "BASE")


# --- what is data -----------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
    "name", ["data/train-00000-of-00001.parquet", "train.jsonl", "corpus.json", "corpus.csv", "corpus.JSONL"]
)
def test_documents_beside_data_files_are_not_data(tmp_path: Path, name: str):
    write(tmp_path, {"README.md": CARD, "LICENSE.txt": "MIT", ".gitattributes": "*", ".git/notes.txt": "no"})
    write(tmp_path, {"CITATION.cff": "x", "dataset_infos.json": "{}", "docs/README.rst": "more"})
    if name.endswith(".JSONL"):
        (write(tmp_path, {"corpus.jsonl": ["a", "b"]}) / "corpus.jsonl").rename(tmp_path / name)
    else:
        write(tmp_path, {name: ["a", "b"]})
    assert texts(tmp_path) == ["a", "b"]


def test_a_card_beside_texts_is_not_a_text(tmp_path: Path):
    write(tmp_path, {"README.md": CARD, "LICENSE": "MIT", "LICENSE-CC-BY.txt": "CC", "b.TXT": "b", "a.txt": "a"})
    assert texts(tmp_path) == ["a", "b"]
    write(tmp_path, {"a_project/README.md": "of a project"})
    assert texts(tmp_path) == ["a", "of a project", "b"]


def test_a_card_beside_images_is_not_data(tmp_path: Path):
    write(tmp_path, {"README.md": CARD, "LICENSE.txt": "MIT", "cat/README.md": "cats"})
    (tmp_path / "cat/a.png").write_bytes(png(1))
    assert [sample.fields["label"] for sample in open_data(str(tmp_path))] == ["cat"]


@pytest.mark.parametrize("file", ["zoo.json", "2-distill/zoo.json", "model.safetensors"])
def test_a_folder_that_holds_a_model_is_no_data(tmp_path: Path, file: str):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match=rf"holds a model \({file}\), not records; name a file or folder of data\."):
        open_data(str(tmp_path))


def test_a_folder_of_documents_alone_holds_no_data(tmp_path: Path):
    write(tmp_path, {"README.md": CARD, "data.zip": "PK"})
    assert refusal(tmp_path, tmp_path).endswith("nor images (.png, .jpg, .jpeg, ...). There is: README.md, data.zip.")
    assert texts(tmp_path / "README.md") == [CARD]


def test_what_cannot_be_told_apart_is_refused_by_name(tmp_path: Path):
    write(tmp_path / "texts", {"a.txt": "a", "b.txt": "b", "train.jsonl": ["c"]})
    assert refusal(tmp_path / "texts", tmp_path) == (
        "BASE/texts holds 1 data file (train.jsonl) and 2 text files (a.txt, b.txt), and which of them are meant is not "
        "known: name a file or a folder in it."
    )
    write(tmp_path / "images", {"a.txt": "a caption"})
    (tmp_path / "images/a.png").write_bytes(png(1))
    assert "holds 1 image file (a.png) and 1 text file (a.txt)" in refusal(tmp_path / "images", tmp_path)
    (write(tmp_path / "classes", {"classes.json": '["cat"]'}) / "a.png").write_bytes(png(1))
    assert "holds 1 data file (classes.json) and 1 image file (a.png)" in refusal(tmp_path / "classes", tmp_path)
    write(tmp_path / "twice", {"c.csv": ["a"], "c.jsonl": ["a"]})
    assert "holds data files of several formats (c.csv, c.jsonl)" in refusal(tmp_path / "twice", tmp_path)
    write(tmp_path / "tongues", {"en/train.jsonl": ["a"], "fr/train.jsonl": ["b"]})
    assert refusal(tmp_path / "tongues", tmp_path).endswith(
        "holds several data sets (en, fr): name one of them, such as 'BASE/tongues/fr'."
    )
    assert texts(tmp_path / "tongues/fr") == ["b"]


@pytest.mark.parametrize("unread", ["train.jsonl.gz", "data/train.arrow", "corpus.ZIP"])
def test_texts_beside_data_that_is_not_read_are_refused(tmp_path: Path, unread: str):
    (tmp_path / "data").mkdir()
    for name in (unread, "README.md", "annotation.md"):
        (tmp_path / name).write_text("about the data")
    with pytest.raises(
        DataError, match=re.escape(f"holds {unread}, which is not read, beside 1 text file (annotation")
    ):
        open_data(str(tmp_path))
    (tmp_path / "train.ndjson").write_text('{"text": "a"}')
    (tmp_path / "annotation.md").unlink()
    assert [sample.text for sample in open_data(str(tmp_path))] == ["a"]


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    for name in ("a.parquet", "b.csv", "c.txt"):
        write(tmp_path, {name: pointer})
        assert refusal(tmp_path / name, tmp_path) == (
            f"BASE/{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or fetch the file again."
        )


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl", "validation.jsonl"),
        ("train.csv", "test.csv", "dev.csv"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/val-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet", "valid/0000.parquet"),
    ],
    ids=lambda names: names[0],
)
def test_files_say_of_which_split_they_are(tmp_path: Path, names: tuple[str, str, str]):
    write(tmp_path, {"README.md": CARD, **{name: [kind] for name, kind in zip(names, "abc", strict=True)}})
    assert texts(f"{tmp_path}:train") == ["a"] == texts(tmp_path)
    assert texts(f"{tmp_path}:test") == ["b"] and texts(f"{tmp_path}:validation") == ["c"]
    assert refusal(f"{tmp_path}:tset", tmp_path) == (
        "BASE has no split 'tset'. Did you mean 'test'? Splits: test, train, validation."
    )


def test_shards_of_a_split_are_read_in_order(tmp_path: Path):
    write(tmp_path, {f"data/train-0000{i}-of-00002.parquet": [f"{i}a", f"{i}b"] for i in (1, 0)})
    assert texts(tmp_path) == ["0a", "0b", "1a", "1b"]
    assert texts(f"{tmp_path}[1:3]") == ["0b", "1a"]


def test_splits_of_text_files(tmp_path: Path):
    write(tmp_path, {"wiki.train.txt": "a", "wiki.test.txt": "b"})
    assert texts(f"{tmp_path}:test") == ["b"] and texts(tmp_path) == ["b", "a"]


def test_splits_of_records_where_no_file_names_one(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "split": "train"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "split": "test"}\n')
    assert texts(f"{tmp_path}:test") == ["b"] and texts(tmp_path) == ["a", "b"]


def test_files_of_no_split_beside_files_of_one_are_refused(tmp_path: Path):
    write(tmp_path, {"train.jsonl": ["a"], "extra.jsonl": ["b"]})
    assert refusal(tmp_path, tmp_path) == (
        "BASE holds files of splits (train) and files of none (extra.jsonl): name a split, such as 'BASE:train', or a "
        "file in it."
    )
    assert texts(f"{tmp_path}:train") == ["a"] and texts(f"{tmp_path}:extra") == ["b"]


# --- pictures in records ----------------------------------------------------------------------------------------------


def test_a_parquet_column_of_pictures(tmp_path: Path):
    (tmp_path / "beside.png").write_bytes(png(2))
    images = [{"bytes": png(1), "path": "gone.png"}, {"bytes": None, "path": "beside.png"}]
    data = open_data(str(table(tmp_path / "i.parquet", {"label": [0, 1], "image": images})))
    assert [read_image(sample.fields["image"]).getpixel((0, 0)) for sample in data] == [(1, 0, 0), (2, 0, 0)]
    assert [(sample.text, sample.fields["label"]) for sample in data] == [("0", 0), ("1", 1)]
    pixels = image_bytes(data[0].fields["image"], (3, 8, 8), data[0].where)
    assert pixels.shape == (3, 8, 8) and int(pixels[0, 0, 0]) == 1
    table(tmp_path / "i.parquet", {"text": ["a"], "image": [{"bytes": None, "path": None}]})
    assert refusal(tmp_path / "i.parquet", tmp_path) == (
        "BASE/i.parquet:1: the image holds neither bytes nor the path of a file."
    )


def test_pictures_of_lines_and_tables_lie_beside_them(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(3))
    lines = {"asked.jsonl": json.dumps({"text": "a", "image": {"bytes": None, "path": "a.png"}})}
    for name, content in {
        **lines,
        "asked.csv": "file_name,text\na.png,a\n",
        "more.csv": "image,label\na.png,a\n",
    }.items():
        (tmp_path / name).write_text(content)
        sample = open_data(str(tmp_path / name))[0]
        assert sample.fields["image"] == tmp_path / "a.png" and sample.text == "a"
        (tmp_path / name).rename(tmp_path / f"{name}.done")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a\n")
    assert open_data(str(tmp_path))[0].fields["image"] == tmp_path / "a.png"


def test_pictures_of_a_saved_data_set(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    for decode in (True, False):
        features = datasets.Features(
            {"image": datasets.Image(decode=decode), "label": datasets.ClassLabel(names=["x"])}
        )
        rows = {"image": [{"bytes": png(4), "path": None}], "label": [0]}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / str(decode))
        sample = open_data(str(tmp_path / str(decode)))[0]
        assert read_image(sample.fields["image"]).getpixel((0, 0)) == (4, 0, 0) and sample.text == "0"
