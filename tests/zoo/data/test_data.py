"""Data by name and by path: what is read, what its fingerprint follows, and what is said when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_slm.stdlib import LEFT_OUT

from zoo.data.dataset import Dataset, Sample
from zoo.data.open import open_data
from zoo.data.reference import Reference
from zoo.errors import DataError, ZooError


def refusal(text: str, base: Path) -> str:
    """The sentence `text` is refused with; the folder left out."""
    with pytest.raises(DataError) as caught:
        open_data(text, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{base}/", "")


def jsonl(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def texts(data: Dataset) -> list[str]:
    return [sample.text for sample in data]


def wheres(data: Dataset, base: Path) -> list[str]:
    return [sample.where.replace(f"{base}/", "") for sample in data]


# --- images -----------------------------------------------------------------------------------------------------------


def picture(file: Path, shade: int) -> Path:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(file)
    return file


@pytest.mark.quick
def test_a_folder_of_images_is_labelled_by_its_folders(tmp_path: Path):
    for place in ("train/cat/a.png", "train/dog/b.PNG", "test/cat/c.png"):
        picture(tmp_path / place, 9)
    data = open_data(f"{tmp_path}:train")
    assert [(s.fields["label"], s.text, s.fields["image"].name) for s in data] == [
        ("cat", "cat", "a.png"),
        ("dog", "dog", "b.PNG"),
    ]
    assert len(open_data(str(tmp_path))) == 3
    sentence = refusal(f"{tmp_path}:tain", tmp_path.parent)
    assert "has no folder 'tain' of images. Did you mean 'train'? Folders: test, train." in sentence


def test_an_image_of_a_record_lies_beside_its_file(tmp_path: Path):
    picture(tmp_path / "sub" / "seven.png", 7)
    records = [{"image": "seven.png", "prompt": "What?", "text": "7"}]
    data = open_data(str(jsonl(tmp_path / "sub" / "asked.jsonl", records)))
    assert data[0].fields["image"] == tmp_path / "sub" / "seven.png"
    jsonl(tmp_path / "asked.jsonl", [*records, {"image": "none.png", "prompt": "", "text": ""}])
    assert refusal("asked.jsonl", tmp_path) == f"asked.jsonl:1: the image 'seven.png' is not a file in {tmp_path}."


def test_the_fingerprint_follows_what_an_image_holds(tmp_path: Path):
    file = jsonl(tmp_path / "asked.jsonl", [{"image": "a.png", "text": "7"}])
    found = []
    for shade in (1, 2, 1):
        picture(tmp_path / "a.png", shade)
        found.append(open_data(str(file)).fingerprint)
    assert found[0] == found[2] != found[1]


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_text_file_is_one_record(tmp_path: Path):
    (tmp_path / "a.txt").write_text("größer\n", encoding="utf-8")
    data = open_data("a.txt", base=tmp_path)
    assert texts(data) == ["größer\n"] and wheres(data, tmp_path) == ["a.txt"] and data.name == "a.txt"
    assert texts(open_data(str(tmp_path / "a.txt"))) == ["größer\n"]


def test_a_folder_is_its_text_files_in_order(tmp_path: Path):
    for name in ("b.md", "sub/a.py", "a.txt", "ignored.bin", "empty.txt"):
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text("" if name == "empty.txt" else name)
    data = open_data("notes", base=tmp_path)
    assert texts(data) == ["a.txt", "b.md", "sub/a.py"] and wheres(data, tmp_path)[2] == "notes/sub/a.py"
    assert texts(open_data("notes/[1:]", base=tmp_path)) == ["b.md", "sub/a.py"]


def test_what_is_not_utf8_is_named_with_its_byte(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/bad.txt").write_bytes(b"good \xff bad")
    assert refusal("notes", tmp_path) == "notes/bad.txt: byte 5 is not UTF-8 text."
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert refusal("bad.jsonl", tmp_path) == "bad.jsonl:2: byte 10 of the line is not UTF-8 text."


def test_empty_data_is_refused(tmp_path: Path):
    (tmp_path / "none").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert (
        refusal("none", tmp_path)
        == "none holds neither data files (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), text files (.txt, .md, .rst, .py, .text) nor images (.png, .jpg, .jpeg, ...)."
    )
    assert refusal("blank.txt", tmp_path) == "'blank.txt' holds no records."
    assert refusal("blank.jsonl", tmp_path) == "'blank.jsonl' holds no records."
    (tmp_path / "one.txt").write_text("one")
    assert refusal("one.txt[5:]", tmp_path) == "'one.txt[5:]' holds no records (1 before the slice)."


def test_text_has_no_splits(tmp_path: Path):
    (tmp_path / "one.txt").write_text("one")
    assert refusal("one.txt:train", tmp_path) == (
        "one.txt is plain text, which has no split 'train'; use slices such as [:90%] and [90%:]."
    )


@pytest.mark.quick
def test_missing_data_names_what_is_near(tmp_path: Path):
    jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    assert refusal("corpus.json", tmp_path).startswith(
        "No data source or file called 'corpus.json'. Did you mean 'corpus.jsonl'? Sources: "
    )
    assert refusal("stdlb:train", tmp_path).startswith(
        "No data source or file called 'stdlb'. Did you mean 'stdlib'? Sources: "
    )
    assert refusal("org/name", tmp_path).endswith(
        "looked for a file at org/name. A data set of the hub is written 'hub:org/name'."
    )
    (tmp_path / "x.xml").write_text("<a/>")
    assert refusal("x.xml", tmp_path) == (
        "x.xml: .xml is not a data format; use .txt, .md, .rst, .py, .text, .jsonl, .ndjson, .json, .csv, .tsv, .parquet, or a folder saved by Hugging Face datasets."
    )


def test_a_source_wins_over_a_file_of_its_name(tmp_path: Path):
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib/a.txt").write_text("mine")
    assert open_data("stdlib:test[:1]", base=tmp_path)[0].where.endswith(".py")
    assert texts(open_data("./stdlib", base=tmp_path)) == ["mine"]


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_for_an_evaluator_of_its_own_need_no_text(tmp_path: Path):
    jsonl(tmp_path / "c.jsonl", [{"question": "a", "answer": "b", "split": "test"}])
    for reference in ("c.jsonl?text=", "c.jsonl?text=:test[:1]"):
        (sample,) = open_data(reference, base=tmp_path)
        assert (sample.fields["question"], sample.fields["answer"]) == ("a", "b")
    with pytest.raises(DataError, match=r"c.jsonl:1: no field 'text'. Fields: question, answer, split."):
        texts(open_data("c.jsonl?text=", base=tmp_path))


@pytest.mark.quick
def test_jsonl_records_know_their_line(tmp_path: Path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n\n{"text": "b", "more": 1}\n')
    data = open_data("c.jsonl", base=tmp_path)
    assert texts(data) == ["a", "b"] and wheres(data, tmp_path) == ["c.jsonl:1", "c.jsonl:3"]
    assert data[1].fields["more"] == 1


def test_another_field_may_be_the_text(tmp_path: Path):
    jsonl(tmp_path / "c.jsonl", [{"body": "a", "split": "train"}, {"body": "b", "split": "test"}])
    assert texts(open_data("c.jsonl?text=body", base=tmp_path)) == ["a", "b"]
    assert texts(open_data("c.jsonl?text=body:test[:1]", base=tmp_path)) == ["b"]
    assert (
        refusal("c.jsonl", tmp_path)
        == "c.jsonl:1: no field 'text'. Fields: body, split; name another with '?text=FIELD', or none with '?text='."
    )
    assert refusal("c.jsonl?text=bdy", tmp_path) == (
        "c.jsonl:1: no field 'bdy'. Did you mean 'body'? Fields: body, split; name another with '?text=FIELD', or none with '?text='."
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "c.jsonl:2: not a JSON object: Expecting property name"),
        ("[1]", "c.jsonl:2: expected a JSON object, found list."),
        ('{"text": 3}', "c.jsonl:2: 'text' is int, not text."),
        ('{"text": null}', "c.jsonl:2: 'text' is NoneType, not text."),
        ("[" * 100_000, "c.jsonl:2: not a JSON object: "),
        ("{}", "c.jsonl:2: no field 'text'. Fields: none;"),
    ],
    ids=["half", "list", "number", "null", "deep", "nothing"],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, line: str, sentence: str):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n' + line + '\n{"text": "b"}\n')
    assert refusal("c.jsonl", tmp_path).startswith(sentence)


def test_splits_of_records_come_from_their_field(tmp_path: Path):
    jsonl(
        tmp_path / "c.jsonl",
        [{"text": "a", "split": "train"}, {"text": "b", "split": "test"}, {"text": "c", "split": "train"}],
    )
    assert (
        texts(open_data("c.jsonl:train", base=tmp_path)) == ["a", "c"] and len(open_data("c.jsonl", base=tmp_path)) == 3
    )
    assert refusal("c.jsonl:tset", tmp_path) == "c.jsonl has no split 'tset'. Did you mean 'test'? Splits: train, test."
    jsonl(tmp_path / "c.jsonl", [{"text": "a"}])
    assert refusal("c.jsonl:train", tmp_path) == (
        "c.jsonl:1: no field 'split', so it is not known whether the record is of split 'train'."
    )


def test_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pa.table({"text": ["a", "b"], "body": ["x", "y"], "split": ["train", "test"]}), tmp_path / "p.parquet"
    )
    data = open_data("p.parquet", base=tmp_path)
    assert texts(data) == ["a", "b"] and wheres(data, tmp_path) == ["p.parquet:1", "p.parquet:2"]
    assert texts(open_data("p.parquet?text=body:test", base=tmp_path)) == ["y"]
    assert (
        refusal("p.parquet:tset", tmp_path)
        == "p.parquet has no split 'tset'. Did you mean 'test'? Splits: train, test."
    )
    parquet.write_table(pa.table({"text": ["a", None]}), tmp_path / "p.parquet")
    assert refusal("p.parquet", tmp_path) == "p.parquet:2: 'text' is NoneType, not text."
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    assert refusal("p.parquet", tmp_path).startswith("p.parquet cannot be read: ")


def test_data_sets_saved_by_hugging_face(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    train, test = (
        datasets.Dataset.from_dict({"text": ["a", "b"]}),
        datasets.Dataset.from_dict({"text": ["c"], "body": ["d"]}),
    )
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    assert texts(open_data("one", base=tmp_path)) == ["a", "b"]
    assert texts(open_data("both", base=tmp_path)) == ["a", "b"] and texts(open_data("both:test", base=tmp_path)) == [
        "c"
    ]
    assert texts(open_data("both?text=body:test", base=tmp_path)) == ["d"]
    assert wheres(open_data("both:train[1:]", base=tmp_path), tmp_path) == ["both:2"]
    assert refusal("both:tset", tmp_path) == "both has no split 'tset'. Did you mean 'test'? Splits: train, test."
    assert refusal("one:train", tmp_path) == "one has no splits; leave out ':train'."
    (tmp_path / "one/dataset_info.json").write_text("{")
    assert refusal("one", tmp_path).startswith("one cannot be read: ")


def test_the_hub_while_offline_is_one_sentence(tmp_path: Path):
    from outsiders import python

    pytest.importorskip("datasets")
    code = "from zoo.data.open import open_data\nfrom zoo.errors import DataError\ntry:\n    open_data('hub:org/name:test')\nexcept DataError as e:\n    print(e)"
    done = python("-c", code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hub:org/name cannot be read: ") and done.stdout.count("\n") == 1
    assert "offline" in done.stdout.lower() and "HF_HUB_OFFLINE" in done.stdout


# --- slices -----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ("", "0123456789"),
        ("[:3]", "012"),
        ("[8:]", "89"),
        ("[2:4]", "23"),
        ("[:10%]", "0"),
        ("[90%:]", "9"),
        ("[:]", "0123456789"),
        ("[20%:5]", "234"),
        ("[:300]", "0123456789"),
        ("[:33%]", "012"),
    ],
)
def test_slices(tmp_path: Path, cut: str, left: str):
    jsonl(tmp_path / "c.jsonl", [{"text": str(i)} for i in range(10)])
    assert "".join(texts(open_data(f"c.jsonl{cut}", base=tmp_path))) == left


@pytest.mark.parametrize("cut", ["[:abc]", "[:%]", "[-3:]", "[1:2:3]", "[:1.5]"])
def test_what_is_no_slice_is_refused(tmp_path: Path, cut: str):
    jsonl(tmp_path / "c.jsonl", [{"text": "a"}])
    assert (
        refusal(f"c.jsonl{cut}", tmp_path)
        == f"'c.jsonl{cut}': {cut} is not a slice; write [:128], [5:], [10:20] or [:10%]."
    )


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_data_or_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str):
    base = tmp_path_factory.getbasetemp() / "nothing-here"
    for reference in (text, f"stdlib{text}", f"./x{text}", "x" * 300 + text):
        try:
            Reference.parse(reference)
            if "hub:" not in reference and not reference.startswith(("/", "stdlib")):
                open_data(reference, base=base)
        except ZooError as error:
            assert str(error) and error.exit_code == 2


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_the_fingerprint_follows_content_not_place(tmp_path: Path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "c.jsonl", [{"text": "a", "n": 1}, {"n": 2, "text": "b"}])
    here, there = (open_data("c.jsonl", base=tmp_path / folder) for folder in ("here", "there"))
    assert here.fingerprint == there.fingerprint and here[0].where != there[0].where
    assert open_data("c.jsonl[:1]", base=tmp_path / "here").fingerprint != here.fingerprint == here[0:2].fingerprint
    jsonl(tmp_path / "there/c.jsonl", [{"text": "a", "n": 1}, {"text": "b!", "n": 2}])
    assert open_data("c.jsonl", base=tmp_path / "there").fingerprint != here.fingerprint
    jsonl(tmp_path / "there/c.jsonl", [{"text": "b", "n": 2}, {"text": "a", "n": 1}])
    assert open_data("c.jsonl", base=tmp_path / "there").fingerprint != here.fingerprint


def test_the_fingerprint_sees_where_a_record_ends():
    one, two = (Dataset("d", [Sample({"text": text}, "") for text in parts]) for parts in (["ab", "c"], ["a", "bc"]))
    assert one.fingerprint != two.fingerprint


# --- the standard library ---------------------------------------------------------------------------------------------


def test_stdlib_splits_are_disjoint_by_module_and_always_the_same():
    from zoo import registry

    train, test = (list(registry.data_source("stdlib").records(split)) for split in ("train", "test"))
    modules = [{sample.where.split("/")[0].removesuffix(".py") for sample in split} for split in (train, test)]
    assert not modules[0] & modules[1] and len(modules[0]) > 100 < len(train) and len(modules[1]) >= 5
    assert "json" in modules[0] | modules[1] and not modules[0] & LEFT_OUT
    again = list(registry.data_source("stdlib").records("test"))
    assert Dataset("a", again).fingerprint == Dataset("b", test).fingerprint
    assert [sample.where for sample in again] == sorted((s.where for s in again), key=lambda where: where.split("/"))


def test_stdlib_names_an_unknown_split(tmp_path: Path):
    assert refusal("stdlib:tets", tmp_path) == "'stdlib' has no split 'tets'. Did you mean 'test'? Splits: train, test."
