"""The output directory of a run: who may write into it, what is where, and how a result appears in it.

OUT/zoo.json, model.safetensors, ...   the result, an artifact; its manifest is written last
OUT/results.json, report.html          every figure, and the same to look at
OUT/recipe.toml                        the recipe as it was run
OUT/run.json                           which recipe's run this is, which files of the result are its own, who writes now, what
                                       was planned and how long it has taken
OUT/stages/01-inherit-<fingerprint>/   the artifact of a stage, there only when complete
OUT/stages/01-inherit-<fingerprint>.json   its log: seconds, peak memory, curves, metrics, samples
OUT/work/<fingerprint>/                checkpoints of an unfinished stage
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from zoo.artifact import store
from zoo.artifact.card import card
from zoo.artifact.manifest import MANIFEST, manifest_text
from zoo.errors import ArtifactError, OutputError, spelled
from zoo.loading.load import load
from zoo.system.hashing import digests_of
from zoo.system.writing import not_a_directory, replace_file, sync, why_unwritable, writing
from zoo_compress.recipe.times import Times

MARKER = "run.json"
MARKERS = ("config.json", "model_index.json")  # files by which a directory is taken for a model
OURS = re.compile(r"(00-original|(\d\d+-.+|control)-[0-9a-f]{12})(\.json)?")  # names in OUT/stages and OUT/work
DRAFT = re.compile(r"\.(?P<name>.+?)(\.old)?\.[a-z0-9_]{8}")  # what a killed process leaves of a file or folder
RESULT = "result"  # a draft of all files of a result
OWN = (MARKER, RESULT, "results.json", "report.html", "recipe.toml", MANIFEST)


@dataclass
class RunFolder:
    """The output directory `path` of the recipe called `recipe`."""

    path: Path
    recipe: str
    handle: int = field(default=-1, init=False)  # of the directory, while it is held
    by: dict[str, Any] = field(default_factory=dict, init=False)  # who holds it, as others are told
    times: Times = field(default_factory=Times, init=False)
    planned: dict[str, Any] = field(default_factory=dict, init=False)  # what was first planned of a model, by name

    def check(self, *, force: bool = False) -> None:
        """Refuse a directory that holds something else or cannot be written, before any work.

        Raises:
            OutputError: says what is in the way; `force` allows to write beside it.
        """
        folder = self.path
        try:
            if not_a_directory(folder):
                raise OutputError(f"{folder} is a file; name a directory.")
            occupied = folder.is_dir() and any(not self._drafted(place.name) for place in folder.iterdir())
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
        if occupied and not force:
            mine = self._marker().get("recipe")
            remedy = f"choose another {spelled('out', '--out')}, or pass {spelled('force=True', '--force')}"
            if mine is None:
                raise OutputError(f"{folder} is not empty and holds no run of this recipe; {remedy} to write into it.")
            if mine != self.recipe:
                raise OutputError(f"{folder} holds a run of {mine!r}, not of {self.recipe!r}; {remedy} to replace it.")
        if reason := why_unwritable(folder):
            raise OutputError(f"{folder} cannot be written: {reason}.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory and hold it: a second run may not write into it. The system lets go when a process dies.

        Raises:
            OutputError: another run holds it, or it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.handle = os.open(self.path, os.O_RDONLY)
        try:
            self._lock()
            self.by = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            self._begin()
            yield
        finally:
            with suppress(OutputError):
                if self.by and self._is_there():
                    self.by = {}
                    self.times.stop()
                    self._mark(self._files())
            os.close(self.handle)
            self.handle = -1

    def _lock(self) -> None:
        try:
            import fcntl

            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = self._marker().get("by")
            who = (
                f" (process {by.get('pid')} on {by.get('host')}, since {by.get('since')})"
                if isinstance(by, dict)
                else ""
            )
            raise OutputError(
                f"Another run is writing into {self.path}{who}; wait for it, or choose another {spelled('out', '--out')}."
            ) from None
        except (ImportError, OSError):  # a system or a file system without locks
            pass

    def require_there(self) -> None:
        """Refuse to go on where the directory that is held was removed, or another put in its place.

        Raises:
            OutputError: says so.
        """
        if self.handle >= 0 and not self._is_there():
            raise OutputError(
                f"{self.path} was removed or replaced while the run was writing into it; nothing more was written."
            )

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.handle), self.path.stat())
        except OSError:
            return False

    def keep_plan(self, planned: Mapping[str, Any]) -> None:
        """Keep what is planned of models, by name, where it was not planned before."""
        self.planned = {name: self.planned.get(name, stage) for name, stage in planned.items()}
        self._mark(self._files())

    @contextmanager
    def timed(self, name: str) -> Iterator[Callable[[], float]]:
        """Time a stage; what is yielded says what it has taken by now, in this session and in those before."""
        clock = time.monotonic()
        self.times.work(name)
        self._mark(self._files())
        try:
            yield lambda: self.times.unfinished.get(name, 0.0) + time.monotonic() - clock
        except BaseException:
            self.times.interrupt(name, time.monotonic() - clock)
            raise
        self.times.finish(name)

    def stage(self, name: str) -> Path:
        """The artifact directory of a stage."""
        return self.path / "stages" / name

    def work(self, name: str, *, make: bool = True) -> Path:
        """The checkpoint directory of a stage; by default it is made."""
        place = self.path / "work" / name
        if not make:
            return place
        self.require_there()
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        return place

    def finished(self, name: str) -> bool:
        """Whether a stage is complete: its log is written first, its directory appears by one rename."""
        return (self.stage(name) / MANIFEST).exists() and self._log_path(name).exists()

    def log(self, name: str) -> dict[str, Any]:
        """The log of a stage, or an empty dict."""
        try:
            found: dict[str, Any] = json.loads(self._log_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def write_log(self, name: str, log: dict[str, Any]) -> None:
        """Replace the log of a stage."""
        self.require_there()
        if not self.times.working:
            self.times.work()
        place = self._log_path(name)
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        replace_file(place, json.dumps(log) + "\n")

    def publish(
        self, name: str, notes: dict[str, Any], *, extra: Mapping[str, bytes], beside: Mapping[str, str]
    ) -> None:
        """Put a stage's artifact into the directory, with `notes` on its card and `extra` files, and `beside` it the rest.

        Everything is written in full before the first file of an older result goes. Killed anywhere, the directory
        holds either no model or a whole one.
        """
        source = self.stage(name)
        with repairable(source):
            store.require_intact(source)
            manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
            model = load(source, device="meta")
        model.notes = manifest["notes"] = notes
        made = {**extra, "README.md": card(model, manifest["plain"]).encode()}
        manifest["files"] |= {file: digests_of(held) for file, held in made.items()}
        final = manifest_text(manifest)
        self.require_there()
        if self._holds(final):
            for file, text in beside.items():
                replace_file(self.path / file, text)
            return
        with self._drafts() as draft:
            for file in manifest["files"].keys() - made.keys():
                _fill(draft / file, source / file)
            for file, held in {
                **made,
                **{file: text.encode() for file, text in beside.items()},
                MANIFEST: final.encode(),
            }.items():
                _fill(draft / file, held)
            self._exchange(draft, sorted(manifest["files"]))

    def _holds(self, manifest: str) -> bool:
        """Whether the result is there already, whole."""
        place = self.path / MANIFEST
        return place.is_file() and place.read_text(encoding="utf-8") == manifest and not store.verify(self.path)

    @contextmanager
    def _drafts(self) -> Iterator[Path]:
        with writing(self.path):
            draft = Path(tempfile.mkdtemp(dir=self.path, prefix=f".{RESULT}."))
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _exchange(self, draft: Path, files: list[str]) -> None:
        """Move a complete draft into the place of an older result: what makes a directory a model goes first and comes last."""
        old = self._files()
        self._mark(sorted({*files, *old}))
        with writing(self.path):
            for file in (MANIFEST, *MARKERS, *old):
                (self.path / file).unlink(missing_ok=True)
                if "/" in file:
                    with suppress(OSError):  # not empty
                        (self.path / file).parent.rmdir()
            new = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
            for file in sorted(new, key=lambda file: (file == MANIFEST, file in MARKERS)):
                (self.path / file).parent.mkdir(exist_ok=True)
                (draft / file).rename(self.path / file)
            for folder in {self.path, *((self.path / file).parent for file in new)}:
                sync(folder)
        self._mark(files)

    def forget(self, *, kept: set[str]) -> None:
        """Remove stages and checkpoints of earlier versions of the recipe, and checkpoints of what is finished."""
        for folder in (self.path / "stages", self.path / "work"):
            for place in folder.iterdir() if folder.is_dir() else ():
                name = place.name.removesuffix(".json")
                needed = name in {*kept, "00-original"} and not (folder.name == "work" and self.finished(name))
                if OURS.fullmatch(place.name) and not needed:
                    _remove(place)
        with suppress(OSError):  # not there, or not empty
            (self.path / "work").rmdir()

    def _begin(self) -> None:
        """Say whose directory this is, and remove what a killed run left half-written in it."""
        marker = self._marker()
        if marker.get("recipe") == self.recipe:
            planned = marker.get("planned")
            self.planned = planned if isinstance(planned, dict) else {}
            self.times = Times.read(marker.get("times"), self.path)
        self._mark(self._files())
        for place in self.path.iterdir():
            if self._drafted(place.name):
                _remove(place)
        stages = self.path / "stages"
        for place in stages.iterdir() if stages.is_dir() else ():
            draft = DRAFT.fullmatch(place.name)
            if draft and OURS.fullmatch(draft["name"]):
                _remove(place)

    def _drafted(self, name: str) -> bool:
        """Whether a name in the directory is that of a file of a run that was being written."""
        draft = DRAFT.fullmatch(name)
        return draft is not None and draft["name"] in OWN

    def _log_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _marker(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _files(self) -> list[str]:
        return list(self._marker().get("files", []))

    def _mark(self, files: list[str]) -> None:
        by = {"by": self.by} if self.by else {}
        marker = {"recipe": self.recipe, "files": files, "planned": self.planned, "times": self.times.to_json(), **by}
        replace_file(self.path / MARKER, json.dumps(marker) + "\n")


@contextmanager
def repairable(stage: Path) -> Iterator[None]:
    """Add to what is wrong with the artifact of a stage how to get another."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(
            f"{error} Remove {stage} and run again: only that stage and those after it are made anew."
        ) from error


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()


def _fill(place: Path, content: bytes | Path) -> None:
    """Write a file of a draft, with `content` or as a copy of it."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    with writing(place, size=size):
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, place)
        else:
            place.write_bytes(content)
        place.chmod(0o644)
        sync(place)
