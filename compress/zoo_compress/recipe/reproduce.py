"""Reproduction: make a saved model again from what its manifest says, and name the first thing that differs.

What has to be there is looked for before any work: the original's weights, the data, the teachers, the plugins, each by
its hash. Versions or hardware that differ are named, since they can explain a difference, and the work goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo import catalog, registry
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST, read_manifest
from zoo.compressor import Compressor
from zoo.data.dataset import Dataset
from zoo.data.open import open_data
from zoo.errors import ArtifactError, RequestError, ZooError
from zoo.loading import weights
from zoo.loading.load import load
from zoo.model.context import Context, Progress, Silent
from zoo.model.lineage import Stage
from zoo.model.model import Model, build_random
from zoo.model.provenance import circumstances, threads, weights_digest
from zoo.options import CompressorOptions
from zoo.plugins import manager

SHOWN = 12  # characters of a hash
CARD = "README.md"  # says what was measured, and in the order of the report


class Unreproducible(RequestError):
    """A saved model cannot be made again here; the message names what is missing."""


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

    def add(self, found: Difference | None) -> None:
        """Note a difference: the first one, and of later ones that with a tensor."""
        first = self.difference
        if first is None:
            self.difference = found
        elif found and found.tensor and not first.tensor:
            what = f"{first.what} is the first that differs; in {found.what}"
            self.difference = replace(found, stage=first.stage, use=first.use, what=what)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        found = asdict(self.difference) | {"sentence": str(self.difference)} if self.difference else None
        return {
            "artifact": self.artifact,
            "identical": self.identical,
            "circumstances": self.circumstances,
            "stages": self.stages,
            "files": self.files,
            "difference": found,
        }


def reproduce(
    path: str | Path, *, out: str | Path | None = None, base: str | Path | None = None, progress: Progress | None = None
) -> Outcome:
    """Make a saved model again from its own manifest and compare it, to the bit.

    Args:
        path: an artifact: a run's output, the directory of one of its stages, or a model saved from Python.
        out: where the new one is put; by default it is compared and forgotten.
        base: where relative paths of data and models start; by default at the recipe of the run, else here.

    Raises:
        Unreproducible: it cannot be tried; names what is missing.
    """
    place = Path(path)
    try:
        return _Reproduction(place, Path(base) if base else _base_of(place), progress or Silent()).run(out)
    except Unreproducible:
        raise
    except ZooError as error:
        raise Unreproducible(f"{place} cannot be made again: {error}") from error


@dataclass(frozen=True)
class _Step:
    """A stage that will be made again, with all it takes in."""

    place: int  # in the lineage
    number: int  # from 1, after the original
    stage: Stage
    compressor: Compressor
    options: CompressorOptions
    data: Mapping[str, Dataset]

    @property
    def label(self) -> str:
        return f"stage {self.number} ({self.stage.use})"


class _Reproduction:
    def __init__(self, path: Path, base: Path, progress: Progress) -> None:
        self.path, self.base, self.progress = path, base, progress
        self.manifest = read_manifest(path)
        self.source = self.manifest.source
        store.require_intact(path)
        load(path, device="meta")  # names a plugin that is not here
        if not self.source:
            raise Unreproducible(
                f"{path} cannot be made again: its manifest does not say what it was made from (an older zoo wrote it)."
            )
        if not 0 <= self.source["stages"] <= len(self.manifest.lineage):
            raise ArtifactError(f"{path / MANIFEST} is damaged: its original has more stages than it.")
        self._require_original()
        first = self.source["stages"]
        self.steps = [
            self._step(place, stage, place - first + 1)
            for place, stage in enumerate(self.manifest.lineage)
            if place >= first
        ]

    def run(self, out: str | Path | None) -> Outcome:
        """Make it again, stage by stage, and compare."""
        if out is not None:
            store.check_writable(Path(out))
        outcome = Outcome(str(self.path), self._other_circumstances())
        for one in outcome.circumstances:
            self.progress.say(
                f"{one['what']} is {one['here'] or 'absent'}, and was {one['then'] or 'absent'} when it was made"
            )
        model = self._original()
        for step in self.steps:
            self._again(step, model)
            found = self._compare_stage(step, model)
            outcome.stages.append({"number": step.number, "use": step.stage.use, "identical": found is None})
            outcome.add(found)
            if found and (found.tensor or made_otherwise(step, model)):  # looked into already, or no longer alike
                return outcome
        self._compare_result(model, outcome, out)
        return outcome

    # --- what has to be there -------------------------------------------------------------------------------------

    def _require_original(self) -> None:
        """Refuse where the original's weights are not here, or are others."""
        name, asked, expected = (self.source[key] for key in ("name", "weights", "sha256"))
        if asked == "random":
            return
        try:
            found = weights_digest(self._weights_place(name, asked))
        except ZooError as error:
            raise Unreproducible(f"{self.path} cannot be made again: its original is not here: {error}") from None
        if not found:
            raise Unreproducible(
                f"{self.path} cannot be made again: its original {name!r} is not here{self._looked(name)}."
            )
        if found != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the weights of its original {name!r} are not those it was made from "
                f"(their sha256 begins with {found[:SHOWN]} here, and with {expected[:SHOWN] or 'nothing'} in the manifest)."
            )

    def _weights_place(self, name: str, asked: str) -> Path:
        if asked != "auto":
            return Path(self._located(asked))
        folder = Path(self._located(name))
        return folder if folder.is_dir() else weights.resolve(catalog.info(name)) if not _is_path(name) else folder

    def _located(self, name: str) -> str:
        """A name; a path that exists below the base is meant from there."""
        beside = self.base / name
        return str(beside) if _is_path(name) and beside.exists() else name

    def _looked(self, name: str) -> str:
        return (
            f"; looked in {self.base.absolute()} (--base names another folder)"
            if _is_path(name) and not Path(name).is_absolute()
            else ""
        )

    def _step(self, place: int, stage: Stage, number: int) -> _Step:
        from zoo.options import validated

        label = f"stage {number} ({stage.use})"
        if not stage.made:
            raise Unreproducible(
                f"{self.path} cannot be made again: the manifest does not say what {label} was made with (an older zoo wrote it)."
            )
        compressor = registry.compressor(stage.use, plugin=stage.plugin)
        compressor.require_version(stage.version)
        options = validated(compressor.Options, stage.options, what=label)
        data = {role: self._data(role, about, label) for role, about in stage.made["data"].items()}
        for role in compressor.roles(options):
            if role not in data:
                raise Unreproducible(
                    f"{self.path} cannot be made again: the manifest does not say which {role} data {label} was given."
                )
        for name, expected in stage.made["teachers"].items():
            self._require_teacher(name, expected, label)
        return _Step(place, number, stage, compressor, options, data)

    def _data(self, role: str, about: Mapping[str, str], label: str) -> Dataset:
        reference, expected = about["reference"], about["fingerprint"]
        try:
            found = open_data(reference, base=self.base)
        except ZooError as error:
            raise Unreproducible(
                f"{self.path} cannot be made again: the {role} data of {label} is not here: {error}"
            ) from None
        if found.fingerprint != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the {role} data of {label}, {reference!r}, is not what it was "
                f"(its sha256 begins with {found.fingerprint[:SHOWN]} here, and with {expected[:SHOWN]} in the manifest)."
            )
        return found

    def _require_teacher(self, name: str, expected: str, label: str) -> None:
        if name == "original" or expected == "random":
            return
        try:
            found = weights_digest(self._weights_place(name, "auto"))
        except ZooError as error:
            raise Unreproducible(
                f"{self.path} cannot be made again: the teacher {name!r} of {label} is not here: {error}"
            ) from None
        if found != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the teacher {name!r} of {label} is "
                f"{'not what it was' if found else f'not here{self._looked(name)}'}."
            )

    def _other_circumstances(self) -> list[dict[str, str]]:
        """Versions and hardware that differ from those of any stage, each once; the thread count is set as it was."""
        here = circumstances("cpu")
        then: dict[str, str] = {}
        for step in self.steps:
            then |= {key: value for key, value in step.stage.made["with"].items() if value != here.get(key)}
        installed = {plugin.name: plugin.version for plugin in manager.plugins_in_use()}
        for name, about in self.manifest.plugins.items():
            if about.get("distribution") != manager.DISTRIBUTION and about.get("version", "") != installed.get(
                name, ""
            ):
                then[f"plugin {name}"], here[f"plugin {name}"] = str(about.get("version", "")), installed.get(name, "")
        return [
            {"what": key, "then": value, "here": here.get(key, "")} for key, value in then.items() if key != "threads"
        ]

    # --- making it again ------------------------------------------------------------------------------------------

    def _original(self) -> Model:
        """The original, as a run begins with it."""
        source, manifest = self.source, self.manifest
        if source["weights"] == "random":
            model = self._random()
        else:
            weights_at = source["weights"] if source["weights"] == "auto" else self._located(source["weights"])
            model = load(self._located(source["name"]), weights=weights_at, dtype=source["dtype"] or None)
        model.stored = manifest.stored
        if source["rounded"]:
            model.round()
        model.source = dict(source)
        return model

    def _random(self) -> Model:
        manifest, source = self.manifest, self.source
        family = registry.family_of(manifest.spec, plugin=manifest.family_plugin)
        before = manifest.lineage[: source["stages"]]
        model = build_random(
            family, manifest.spec, lineage=before, dtype=manifest.dtype, stored=manifest.stored, seed=source["seed"]
        )
        if not any(step.compressor.tokenizes for step in self.steps):
            model.processor = family.load_processor(self.path)  # went in as it came out
        return model

    def _again(self, step: _Step, model: Model) -> None:
        self.progress.say(f"{step.label}: making it again")
        model.spec = self.manifest.spec
        context = Context(seed=step.stage.seed, data=step.data, progress=self.progress, load=self._teacher)
        with threads(_threads(step.stage)):
            model.apply(step.compressor, step.options, context)

    def _teacher(self, name: str) -> Model:
        return self._original() if name == "original" else load(self._located(name))

    # --- comparing ------------------------------------------------------------------------------------------------

    def _compare_stage(self, step: _Step, model: Model) -> Difference | None:
        """What the stage left, against the manifest, and where its own artifact is here, against that."""
        say = partial(Difference, step.number, step.stage.use, f"the result of {step.label}")
        made = model.lineage[-1]
        if made_otherwise(step, model):
            return say(detail=f"the record of what it changed is another: {_first_of(made.record, step.stage.record)}")
        if made.made["sha256"] == step.stage.made["sha256"]:
            return None
        kept = next(
            (place for place in self._stages() if _left(place) == (step.place + 1, step.stage.made["sha256"])), None
        )
        if kept is not None and (found := _first_tensor(model, load(kept))):
            return say(**found)
        return say(detail="its tensors do not have the sha256 of the manifest")

    def _stages(self) -> Iterator[Path]:
        """Directories of stages of the run that this artifact is of."""
        for folder in (self.path / "stages", self.path.parent):
            for place in sorted(folder.iterdir()) if folder.is_dir() else ():
                if (place / MANIFEST).is_file():
                    yield place

    def _compare_result(self, model: Model, outcome: Outcome, out: str | Path | None) -> None:
        """Save the new model, and compare file by file, and where they differ tensor by tensor."""
        model.spec, model.notes = self.manifest.spec, dict(self.manifest.notes)
        with tempfile.TemporaryDirectory() as folder:
            new = store.write(model, Path(out) if out is not None else Path(folder) / "again")
            made = read_manifest(new).files
        for name, about in self.manifest.files.items():
            if name in made and name != CARD:  # others are written by the report of a run
                outcome.files.append({"name": name, "identical": about["sha256"] == made[name]["sha256"]})
        changed = [one["name"] for one in outcome.files if not one["identical"]]
        changed += sorted(made.keys() - self.manifest.files.keys() - {CARD})
        if outcome.difference is None and not changed:
            return
        last = (self.steps[-1].number, self.steps[-1].stage.use) if self.steps else (0, "")
        if found := _first_tensor(model, load(self.path)):
            what = "what was saved" if outcome.difference else "the saved weights are not those the stages left"
            outcome.add(Difference(*last, what, **found))
        else:
            outcome.add(
                Difference(*last, "the saved files", detail=f"{changed[0]} is another, though every tensor is the same")
            )


def made_otherwise(step: _Step, model: Model) -> bool:
    """Whether the last stage changed another structure than it did when it was first run."""
    return model.lineage[-1].record != step.stage.record


def _threads(stage: Stage) -> int:
    found = stage.made["with"].get("threads", "")
    return int(found) if found.isdecimal() and 0 < int(found) <= 1024 else torch.get_num_threads()


def _left(place: Path) -> tuple[int, str]:
    """How many stages an artifact went through, and the hash of the tensors that the last one left."""
    try:
        lineage = read_manifest(place).lineage
    except ZooError:
        return 0, ""
    return len(lineage), str(lineage[-1].made.get("sha256", "")) if lineage else ""


def _first_tensor(made: Model, kept: Model) -> dict[str, Any] | None:
    """The first tensor in which two models differ, in the order of the module: as fields of a `Difference`."""
    mine, theirs = made.tensors(), kept.tensors()
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


def _first_of(new: Any, old: Any, where: str = "") -> str:
    """Say in which entry two records differ first."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if new.get(key) != old.get(key):
                return _first_of(new.get(key), old.get(key), f"{where}.{key}".strip("."))
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for index, (one, other) in enumerate(zip(new, old, strict=True)):
            if one != other:
                return _first_of(one, other, f"{where}[{index}]")
    return f"{where or 'it'} is {_short(new)}, and was {_short(old)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_path(name: str) -> bool:
    return "/" in name or name.startswith(".")


def _base_of(path: Path) -> Path:
    """The folder of the recipe of the run that an artifact is of, where its results say; else the current one."""
    import json

    for folder in (path, path.parent.parent):
        try:
            file = json.loads((folder / "results.json").read_text(encoding="utf-8"))["recipe"]["file"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(file, str) and file and Path(file).is_file():
            return Path(file).parent
    return Path()
