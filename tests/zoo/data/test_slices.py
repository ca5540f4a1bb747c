"""Slices read no further than they ask, and what may have no end takes no more memory than it may."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outsiders import install, python

from zoo.data.open import open_data
from zoo.errors import DataError
from zoo.plugins.names import refresh

REGISTRY = '[[data]]\nname = "counting"\nsummary = "Made up for a test"\n'
PLUGIN = """
from zoo.hooks import hookimpl

@hookimpl
def register_data(register): register("counting", "counted.data:Counting")
"""
DATA = """
from itertools import count
from zoo.data import Sample

class Counting:
    splits = ("short", "endless")
    def records(self, split):
        for number in count():
            if split == "short" and number == 20:
                raise RuntimeError("read too far")
            yield Sample({"text": str(number) + "." * (100_000 if split == "endless" else 0)}, f"counting:{number}")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a plugin whose data source is a generator."""
    install(tmp_path / "site", "counted", registry=REGISTRY, code=PLUGIN)
    (tmp_path / "site/counted/data.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("ZOO_CONFIG_DIR", str(tmp_path / "config"))
    forget()
    yield tmp_path / "site"
    monkeypatch.undo()
    forget()


def forget() -> None:
    for module in [module for module in sys.modules if module.startswith("counted")]:
        del sys.modules[module]
    refresh()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("cut", "numbers"), [("[:20]", range(20)), ("[:3]", range(3)), ("[15:20]", range(15, 20)), ("[19:20]", [19])]
)
def test_a_generator_is_read_as_far_as_is_asked(site: Path, cut: str, numbers: range):
    assert [sample.text for sample in open_data(f"counting:short{cut}")] == [str(number) for number in numbers]
    assert len(open_data(f"counting:endless{cut}")) == len(numbers)
    with pytest.raises(DataError, match=r"'counting:short\[3:3\]' holds no records"):
        open_data("counting:short[3:3]")


@pytest.mark.parametrize("cut", ["", "[5:]", "[:1%]", "[1%:2000]"])
def test_a_source_without_end_is_refused_before_memory_runs_out(site: Path, cut: str):
    code = f"""
import resource
from zoo.data.open import open_data
from zoo.errors import DataError
from zoo.system.memory import limits, peak_bytes, resident_bytes
open_data("counting:endless[:1]")
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000, -1))
before, left = resident_bytes(), limits()[0].left
try:
    open_data("counting:endless{cut}")
except DataError as error:
    print(error)
    assert peak_bytes() - before < 0.7 * left, (peak_bytes() - before, left)
"""
    done = python("-c", code, site=site)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'counting' still goes on after ") and done.stdout.count("\n") == 1
    assert "may have no end: say how many to read, such as 'counting:endless[:" in done.stdout


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "folder/train.jsonl"])
def test_a_file_is_read_as_far_as_is_asked(tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_text("text\na\nb\nc,d\n" if name.endswith(".csv") else '{"text": "a"}\n{"text": "b"}\n{\n')
    where = str((tmp_path / name) if name[1] == "." else tmp_path / "folder")
    assert [sample.text for sample in open_data(f"{where}[:2]")] == ["a", "b"]
    with pytest.raises(DataError):
        open_data(where)
