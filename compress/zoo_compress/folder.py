"""The output directory of a run: who may write into it, what is where, and how a result appears in it.

    OUT/zoo.json, model.safetensors, ...   the result, an artifact; its manifest is written last
    OUT/results.json, report.html          every figure, and the same to look at
    OUT/recipe.toml                        the recipe as it was run
    OUT/run.json                           which recipe's run this is, and which files of the result are its own
    OUT/stages/01-inherit-<fingerprint>/   the artifact of a stage, there only when complete
    OUT/stages/01-inherit-<fingerprint>.json   its log: seconds, peak memory, curves, metrics, samples
    OUT/work/<fingerprint>/                checkpoints of an unfinished stage
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import artifact, loading
from zoo.card import card
from zoo.errors import ArtifactError, OutputError
from zoo.files import copy_file, replace_file, why_unwritable

MARKER = "run.json"
MARKERS = ("config.json", "model_index.json")  # files by which a directory is taken for a model
OURS = re.compile(r"(00-original|(\d\d+-.+|control)-[0-9a-f]{12})(\.json)?")  # names in OUT/stages and OUT/work
DRAFT = re.compile(r"\.(?P<name>.+?)(\.old)?\.[a-z0-9_]{8}")  # what a killed process leaves of a file or folder
OWN = (MARKER, "results.json", "report.html", "recipe.toml", artifact.MANIFEST)


@dataclass(frozen=True)
class RunFolder:
    """The output directory `path` of the recipe called `recipe`."""

    path: Path
    recipe: str

    def check(self, *, force: bool = False) -> None:
        """Refuse a directory that holds something else or cannot be written, before any work.

        Raises:
            OutputError: says what is in the way; `force` allows to write beside it.
        """
        folder = self.path
        try:
            if folder.exists() and not folder.is_dir():
                raise OutputError(f"{folder} is a file; name a directory.")
            occupied = folder.is_dir() and any(folder.iterdir())
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
        if occupied and not force:
            mine = self._marker().get("recipe")
            if mine is None:
                raise OutputError(f"{folder} is not empty and holds no run of this recipe; choose another --out, or pass --force to write into it.")
            if mine != self.recipe:
                raise OutputError(f"{folder} holds a run of {mine!r}, not of {self.recipe!r}; choose another --out, or pass --force to replace it.")
        if reason := why_unwritable(folder):
            raise OutputError(f"{folder} cannot be written: {reason}.")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory and hold it: a second run may not write into it. The system lets go when a process dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from None
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OutputError(f"Another run is writing into {self.path}; wait for it, or choose another --out.") from None
        except (ImportError, OSError):  # a system or a file system without locks
            pass
        try:
            self._begin()
            yield
        finally:
            os.close(handle)

    def stage(self, name: str) -> Path:
        """The artifact directory of a stage."""
        return self.path / "stages" / name

    def work(self, name: str) -> Path:
        """The checkpoint directory of a stage, made."""
        place = self.path / "work" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def finished(self, name: str) -> bool:
        """Whether a stage is complete: its log is written first, its directory appears by one rename."""
        return (self.stage(name) / artifact.MANIFEST).exists() and self._log_path(name).exists()

    def log(self, name: str) -> dict[str, Any]:
        """The log of a stage, or an empty dict."""
        try:
            found: dict[str, Any] = json.loads(self._log_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def write_log(self, name: str, log: dict[str, Any]) -> None:
        """Replace the log of a stage."""
        replace_file(self._log_path(name), json.dumps(log) + "\n")

    def publish(self, name: str, notes: dict[str, Any], *, extra: Mapping[str, bytes]) -> None:
        """Copy a stage's artifact into the directory, with `notes` on its card and `extra` files beside it.

        Killed anywhere, the directory holds either no model or a whole one.
        """
        source = self.stage(name)
        with repairable(source):
            artifact.require_intact(source)
            manifest = json.loads((source / artifact.MANIFEST).read_text(encoding="utf-8"))
            model = loading.load(source, device="meta")
        model.notes = manifest["notes"] = notes
        made = {**extra, "README.md": card(model, manifest["plain"]).encode()}
        manifest["files"] |= {file: {"sha256": hashlib.sha256(held).hexdigest(), "bytes": len(held)} for file, held in made.items()}
        final, old = artifact.manifest_text(manifest), self._marker().get("files", [])
        place = self.path / artifact.MANIFEST
        if place.is_file() and place.read_text(encoding="utf-8") == final and not artifact.verify(self.path):
            return
        files = manifest["files"]
        self._mark(sorted({*files, *old}))
        for file in (artifact.MANIFEST, *MARKERS, *old):  # what makes a directory a model goes first
            (self.path / file).unlink(missing_ok=True)
        for file in sorted(files.keys() - made.keys(), key=lambda file: file in MARKERS):  # and comes last
            (self.path / file).parent.mkdir(exist_ok=True)
            copy_file(source / file, self.path / file)
        for file, held in made.items():
            replace_file(self.path / file, held)
        replace_file(place, final)
        self._mark(sorted(files))

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
        files = list(self._marker().get("files", []))
        self._mark(files)
        for folder in (self.path, self.path / "stages"):
            for place in folder.iterdir() if folder.is_dir() else ():
                draft = DRAFT.fullmatch(place.name)
                ours = {*OWN, *files} if folder == self.path else None
                if draft and (draft["name"] in ours if ours else OURS.fullmatch(draft["name"])):
                    _remove(place)

    def _log_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _marker(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _mark(self, files: list[str]) -> None:
        try:
            replace_file(self.path / MARKER, json.dumps({"recipe": self.recipe, "files": files}) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from None


@contextmanager
def repairable(stage: Path) -> Iterator[None]:
    """Add to what is wrong with the artifact of a stage how to get another."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{error} Remove {stage} and run again: only that stage and those after it are made anew.") from error


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()
