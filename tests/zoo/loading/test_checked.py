"""A file that the catalogue pins is hashed once, and again whenever it may be another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.loading import checked
from zoo.loading.checked import checked_file, has_sha256

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, in a cache of its own, that was not written a moment ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "MOMENT", 0.0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is hashed from here on."""
    files, sha256_of = list[Path](), checked.sha256_of

    def noted(path: Path) -> str:
        files.append(path)
        return sha256_of(path)

    monkeypatch.setattr(checked, "sha256_of", noted)
    return files


def test_a_file_is_hashed_once(file: Path, hashed: list[Path]) -> None:
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256)
    link = file.parent / "link"
    link.symlink_to(file)
    assert has_sha256(link, SHA256)
    assert hashed == [file]
    assert not has_sha256(file, "0" * 64)  # that of another catalogue


def flip(file: Path) -> None:
    content = bytearray(CONTENT)
    content[10] ^= 1
    file.write_bytes(content)


def flip_and_set_the_time_back(file: Path) -> None:
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_in_its_place(file: Path) -> None:
    before, other = file.stat(), file.with_name("other")
    flip(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [flip, flip_and_set_the_time_back, put_another_in_its_place])
def test_a_file_that_was_changed_is_hashed_again(change: Callable[[Path], None], file: Path) -> None:
    assert has_sha256(file, SHA256)
    change(file)
    assert file.stat().st_size == len(CONTENT)
    assert not has_sha256(file, SHA256)


def test_what_was_written_a_moment_ago_is_not_remembered(
    file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "MOMENT", 60.0)
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256)
    assert len(hashed) == 2 and not checked_file().exists()


def others_can_write_the_file() -> None:
    checked_file().chmod(0o666)


def others_can_write_the_folder() -> None:
    checked_file().parent.chmod(0o777)


def it_is_a_link() -> None:
    checked_file().rename(checked_file().with_name("elsewhere"))
    checked_file().symlink_to("elsewhere")


def it_is_cut() -> None:
    checked_file().write_text(checked_file().read_text()[:-20])


def it_is_something_else() -> None:
    checked_file().write_text(json.dumps([1, 2]))


def its_entries_are_something_else() -> None:
    checked_file().write_text(json.dumps(dict.fromkeys(json.loads(checked_file().read_text()), SHA256)))


@pytest.mark.parametrize(
    "harm",
    [
        others_can_write_the_file,
        others_can_write_the_folder,
        it_is_a_link,
        it_is_cut,
        it_is_something_else,
        its_entries_are_something_else,
    ],
)
def test_a_list_that_is_damaged_or_not_ours_alone_is_none(
    harm: Callable[[], None], file: Path, hashed: list[Path]
) -> None:
    assert has_sha256(file, SHA256)
    harm()
    assert has_sha256(file, SHA256)
    assert len(hashed) == 2


def test_where_nothing_can_be_written_it_is_hashed_every_time(
    file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # which is no folder
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256)
    assert len(hashed) == 2


def test_what_is_gone_is_forgotten(file: Path) -> None:
    assert has_sha256(file, SHA256)
    moved = file.rename(file.with_name("moved"))
    assert has_sha256(moved, SHA256)
    assert list(json.loads(checked_file().read_text())) == [str(moved)]
    assert checked_file().stat().st_mode & 0o022 == 0 and checked_file().parent.stat().st_mode & 0o077 == 0
