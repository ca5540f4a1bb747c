"""A place that another process replaces all the time: what is asked about it is answered rightly at every moment."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zoo.artifact import store
from zoo.artifact.store import check_writable
from zoo.errors import OutputError, UnknownName, on_command_line
from zoo.loading.locate import locate
from zoo.system.writing import why_unwritable

pytestmark = pytest.mark.quick

SECONDS = 1.0  # each question was answered wrongly some 20 to 200 times a second, when it looked twice


def _draft(folder: Path) -> Path:
    folder.mkdir()
    for name in ("zoo.json", "model.safetensors"):
        (folder / name).touch()
    return folder


@pytest.fixture
def replaced(tmp_path: Path) -> Iterator[Path]:
    """A model's place: now one is there, now nothing, now the next."""
    place, ended = tmp_path / "model", threading.Event()

    def replace() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            _draft(tmp_path / f"draft-{number}").rename(place)
            place.rename(tmp_path / f"old-{number}")
            shutil.rmtree(tmp_path / f"old-{number}", ignore_errors=True)  # `why_unwritable` may be trying it out

    thread = threading.Thread(target=replace)
    thread.start()
    yield place
    ended.set()
    thread.join()


def _which(path: Path) -> str:
    try:
        locate(path)
    except UnknownName as error:
        return "" if " does not exist." in str(error) else str(error)
    return ""


@pytest.mark.parametrize("ask", [why_unwritable, lambda path: check_writable(path, force=True) or "", _which])
def test_a_place_is_never_taken_for_something_else(replaced: Path, ask: Callable[[Path], str]):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert ask(replaced) == ""


def test_without_force_a_model_that_comes_after_the_check_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = _draft(tmp_path / "model").stat().st_ino
    monkeypatch.setattr(store, "check_writable", lambda path, force: None)  # it has come a moment later
    with pytest.raises(OutputError, match="other processes keep replacing it"):
        store._put(_draft(tmp_path / "mine"), tmp_path / "model", force=False)
    assert (tmp_path / "model").stat().st_ino == theirs


def test_the_way_out_is_said_in_the_words_of_who_asks(tmp_path: Path):
    folder = _draft(tmp_path / "model")
    with pytest.raises(OutputError, match=r"choose another directory, or pass force=True to replace it\."):
        check_writable(folder)
    with on_command_line(), pytest.raises(OutputError, match=r"or pass --force to replace it\."):
        check_writable(folder)
    with pytest.raises(OutputError, match="force=True"):
        check_writable(folder)
