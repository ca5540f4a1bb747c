"""Files as programs write them: CSV, JSON, capitals in the suffix, a byte order mark."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from zoo.data.open import open_data
from zoo.errors import DataError

ROWS = [{"text": 'He said "no",\nand left', "n": "007"}, {"text": "größer 你好", "n": "NA"}, {"text": "", "n": ""}]


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


@pytest.mark.quick
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".CSV", ";"), (".tsv", "\t")])
def test_a_table_is_read_as_csv_wrote_it(tmp_path: Path, suffix: str, delimiter: str, encoding: str):
    with (tmp_path / f"t{suffix}").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, ["text", "n"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    data = open_data(str(tmp_path / f"t{suffix}"))
    assert [dict(sample.fields) for sample in data] == ROWS
    assert [sample.where.rpartition(":")[2] for sample in data] == ["2", "4", "5"]


def test_a_long_field_is_read_and_the_limit_of_csv_stays(tmp_path: Path):
    before = csv.field_size_limit()
    (tmp_path / "t.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(open_data(str(tmp_path / "t.csv"))[0].text) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"text,n\na,1\nb\n", "t.csv:3: 1 values, where the header names 2 fields."),
        (b"text\na,1\n", "t.csv:2: 2 values, where the header names 1 fields."),
        (b"text,text\na,1\n", "t.csv:1: the header names 'text' twice."),
        (
            b"body\na\n",
            "t.csv:2: no field 'text'. Fields: body; name another with '?text=FIELD', or none with '?text='.",
        ),
        (b"text\na\xff\n", "t.csv:2: byte 1 of the line is not UTF-8 text."),
        (b'text\n"a\n', "t.csv:2: not CSV: unexpected end of data."),
        (b"", "'t.csv' holds no records."),
        (b"text\n", "'t.csv' holds no records."),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path: Path, content: bytes, sentence: str):
    (tmp_path / "t.csv").write_bytes(content)
    assert refusal(tmp_path / "t.csv") == sentence


@pytest.mark.quick
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("form", ["list", "inside", "lines"])
def test_json_is_a_list_of_objects_or_holds_one(tmp_path: Path, form: str, encoding: str):
    content = {
        "list": json.dumps(ROWS, indent=1),
        "inside": json.dumps({"version": 2, "about": {"by": "me"}, "data": ROWS}),
        "lines": "\n".join(json.dumps(row) for row in ROWS),
    }[form]
    (tmp_path / "t.json").write_text(content, encoding=encoding)
    data = open_data(str(tmp_path / "t.json"))
    assert [dict(sample.fields) for sample in data] == ROWS and data[1].where.endswith("t.json:2")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            '{"a": [], "b": []}',
            "t.json: expected a list of objects, or an object with one such list; this has 2 lists (a, b).",
        ),
        ('{"text": "a"}', "t.json: expected a list of objects, or an object with one such list; this has no list."),
        ('[{"text": "a"}, 3]', "t.json:2: expected a JSON object, found int."),
        ('"text"', "t.json: expected a list of objects, found str."),
        ('[{"text": "a"}', "t.json is not JSON: "),
        ("[" * 100_000, "t.json is not JSON: "),
        ('{"text": "a"}\n{"text": 3}', "t.json:2: 'text' is int, not text."),
        ("", "t.json is not JSON: "),
    ],
)
def test_bad_json_is_refused_by_record(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "t.json").write_text(content)
    assert refusal(tmp_path / "t.json").startswith(sentence)


@pytest.mark.quick
def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    for name, content in {
        "t.txt": "a",
        "t.jsonl": '{"text": "a"}\n',
        "u.jsonl": '\n{"text": "a"}\n',
        "t.md": "a",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert open_data(str(tmp_path / name))[0].text == "a"


@pytest.mark.quick
def test_suffixes_may_be_written_in_capitals(tmp_path: Path):
    for name, content in {"a.JSONL": '{"text": "a"}\n', "b.TXT": "a", "c.Md": "a", "d.JSON": '[{"text": "a"}]'}.items():
        (tmp_path / name).write_text(content)
        assert open_data(str(tmp_path / name))[0].text == "a"


def test_a_pipe_is_not_opened(tmp_path: Path):
    import os

    for name in ("a.jsonl", "b.txt", "c.csv"):
        os.mkfifo(tmp_path / name)
        assert refusal(tmp_path / name) == f"{name} is not a file."
