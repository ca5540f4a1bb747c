"""What differs between a saved model and the one that is made again: the first thing, by stage and by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.artifact.manifest import MANIFEST, Manifest, read_manifest
from zoo.errors import ZooError
from zoo.loading.load import load
from zoo.model.lineage import Stage
from zoo.model.model import Model

CARD = "README.md"  # says what was measured, and in the order of the report


@dataclass(frozen=True)
class Difference:
    """The first thing that is not as it was; `stage` 0 is the original."""

    stage: int
    use: str
    what: str  # "result of stage 2 (distill)", "the saved file"
    tensor: str = ""
    values: int = 0  # of the tensor
    differing: int = 0
    largest: float | None = None  # difference; None where shapes or kinds differ, or a value is no number
    detail: str = ""

    def __str__(self) -> str:
        if not self.tensor:
            return f"{self.what}: {self.detail}"
        if not self.differing:
            return f"{self.what}: {self.tensor} {self.detail}"
        largest = "not a number" if self.largest is None else f"{self.largest:.3g}"
        return f"{self.what}: in {self.tensor} {self.differing:,} of {self.values:,} values differ, the largest difference is {largest}"


@dataclass
class Outcome:
    """What a reproduction came to."""

    artifact: str
    circumstances: list[dict[str, str]]  # those that differ: "what", "then", "here"
    stages: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    difference: Difference | None = None

    @property
    def identical(self) -> bool:
        return self.difference is None

    def add(self, difference: Difference | None) -> None:
        """Note a difference: the first one, and of later ones that with a tensor."""
        first = self.difference
        if first is None:
            self.difference = difference
        elif difference and difference.tensor and not first.tensor:
            what = f"{first.what} is the first that differs; in {difference.what}"
            self.difference = replace(difference, stage=first.stage, use=first.use, what=what)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        difference = asdict(self.difference) | {"sentence": str(self.difference)} if self.difference else None
        return {
            "artifact": self.artifact,
            "identical": self.identical,
            "circumstances": self.circumstances,
            "stages": self.stages,
            "files": self.files,
            "difference": difference,
        }


@dataclass(frozen=True)
class Saved:
    """The saved model that one made again is compared with. Stages are meant by their index in its lineage."""

    path: Path
    manifest: Manifest

    def number(self, index: int) -> int:
        """The number of a stage, from 1 after the original."""
        first: int = self.manifest.source["stages"]
        return index - first + 1

    def label(self, index: int) -> str:
        return f"stage {self.number(index)} ({self.manifest.lineage[index].use})"

    def stage_difference(self, index: int, made: Model) -> Difference | None:
        """What the stage left, against the manifest, and where its own artifact is here, against that."""
        before, now = self.manifest.lineage[index], made.lineage[-1]
        say = partial(Difference, self.number(index), before.use, f"the result of {self.label(index)}")
        if made_otherwise(made, before):
            return say(detail=f"the record of what it changed is another: {_first_entry(now.record, before.record)}")
        sha256 = before.made["sha256"]
        if now.made["sha256"] == sha256:
            return None
        artifact = next((folder for folder in self._stages() if _left_in(folder) == (index + 1, sha256)), None)
        if artifact is not None and (tensor := _first_tensor(made, load(artifact))):
            return say(**tensor)
        return say(detail="its tensors do not have the sha256 of the manifest")

    def _stages(self) -> Iterator[Path]:
        """Directories of stages of the run that this artifact is of."""
        for parent in (self.path / "stages", self.path.parent):
            for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
                if (folder / MANIFEST).is_file():
                    yield folder

    def add_result(self, made: Model, files: Mapping[str, Mapping[str, Any]], outcome: Outcome) -> None:
        """Compare the result file by file, and where they differ tensor by tensor; `files` are those of the new one."""
        for name, about in self.manifest.files.items():
            if name in files and name != CARD:  # others are written by the report of a run
                outcome.files.append({"name": name, "identical": about["sha256"] == files[name]["sha256"]})
        changed = [file["name"] for file in outcome.files if not file["identical"]]
        changed += sorted(files.keys() - self.manifest.files.keys() - {CARD})
        if not changed:
            return  # and whatever difference there is lies in the manifest alone
        lineage = self.manifest.lineage
        number = self.number(len(lineage) - 1)
        say = partial(Difference, number, lineage[-1].use if number else "")
        if tensor := _first_tensor(made, load(self.path)):
            what = "what was saved" if outcome.difference else "the saved weights are not those the stages left"
            outcome.add(say(what, **tensor))
        else:
            outcome.add(say("the saved files", detail=f"{changed[0]} is another, though every tensor is the same"))


def made_otherwise(made: Model, before: Stage) -> bool:
    """Whether the last stage of a model changed another structure than it did when it was first run."""
    return made.lineage[-1].record != before.record


def _left_in(artifact: Path) -> tuple[int, str]:
    """How many stages an artifact went through, and the hash of the tensors that the last one left."""
    try:
        lineage = read_manifest(artifact).lineage
    except ZooError:
        return 0, ""
    return len(lineage), str(lineage[-1].made.get("sha256", "")) if lineage else ""


def _first_tensor(made: Model, saved: Model) -> dict[str, Any] | None:
    """The first tensor in which two models differ, in the order of the module: as fields of a `Difference`."""
    mine, theirs = made.tensors(), saved.tensors()
    for name in [*theirs, *(name for name in mine if name not in theirs)]:
        if name not in mine or name not in theirs:
            return {"tensor": name, "detail": "is there only " + ("as saved" if name in theirs else "as made again")}
        new, old = mine[name].detach(), theirs[name].detach()
        if new.shape != old.shape or new.dtype != old.dtype:
            return {"tensor": name, "detail": f"is {_kind(new)} as made again, and {_kind(old)} as saved"}
        if count := int((_bits(new) != _bits(old)).any(-1).sum()):
            largest = float((new.double() - old.double()).abs().max())
            return {
                "tensor": name,
                "values": new.numel(),
                "differing": count,
                "largest": largest if largest == largest else None,
            }
    return None


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of every value: (values, bytes)."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def _kind(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _first_entry(new: Any, old: Any, where: str = "") -> str:
    """Say in which entry two records differ first."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if new.get(key) != old.get(key):
                return _first_entry(new.get(key), old.get(key), f"{where}.{key}".strip("."))
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for index, (now, before) in enumerate(zip(new, old, strict=True)):
            if now != before:
                return _first_entry(now, before, f"{where}[{index}]")
    return f"{where or 'it'} is {_short(new)}, and was {_short(old)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
