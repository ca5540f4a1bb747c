"""Reproduction: make a saved model again from what its manifest says, and name the first thing that differs.

What has to be there is looked for before any work: the original's weights, the data, the teachers, the plugins, each by
its hash. Versions or hardware that differ are named, since they can explain a difference, and the work goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zoo import registry
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST, read_manifest
from zoo.compressor import Compressor
from zoo.data.dataset import Dataset
from zoo.data.open import open_data
from zoo.errors import ArtifactError, RequestError, ZooError, spelled
from zoo.loading.directory import missing
from zoo.loading.load import load
from zoo.loading.locate import OWN, Located, locate
from zoo.model.context import Context, Progress, Silent
from zoo.model.lineage import Stage
from zoo.model.model import Model, build_random
from zoo.model.provenance import circumstances, threads, weights_digest
from zoo.options import CompressorOptions, validated
from zoo.plugins import kinds, manager
from zoo.plugins.names import declaration
from zoo.system.processes import require_one_process
from zoo_compress.recipe.differences import Outcome, Saved, made_otherwise

SHOWN = 12  # characters of a hash


class Unreproducible(RequestError):
    """A saved model cannot be made again here; the message names what is missing."""


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
    require_one_process("zoo reproduce")
    artifact = Path(path)
    try:
        return _Reproduction(artifact, Path(base) if base else _base_of(artifact), progress or Silent()).run(out)
    except Unreproducible:
        raise
    except ZooError as error:
        raise Unreproducible(f"{artifact} cannot be made again: {error}") from error


@dataclass(frozen=True)
class _Step:
    """A stage that will be made again, with all it takes in."""

    index: int  # in the lineage
    stage: Stage
    compressor: Compressor
    options: CompressorOptions
    data: Mapping[str, Dataset]


class _Reproduction:
    """A saved model that is made again from its manifest, with what that asks for looked up."""

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
        self.saved = Saved(path, self.manifest)
        self.steps = [
            self._step(index, stage)
            for index, stage in enumerate(self.manifest.lineage)
            if index >= self.source["stages"]
        ]

    def run(self, out: str | Path | None) -> Outcome:
        """Make it again, stage by stage, and compare."""
        if out is not None:
            store.check_writable(Path(out))
        outcome = Outcome(str(self.path), self._other_circumstances())
        for other in outcome.circumstances:
            self.progress.say(
                f"{other['what']} is {other['here'] or 'absent'}, and was {other['then'] or 'absent'} when it was made"
            )
        model = self._original()
        for step in self.steps:
            self._again(step, model)
            difference = self.saved.stage_difference(step.index, model)
            number, use = self.saved.number(step.index), step.stage.use
            outcome.stages.append({"number": number, "use": use, "identical": difference is None})
            outcome.add(difference)
            # looked into already, or no longer alike
            if difference and (difference.tensor or made_otherwise(model, step.stage)):
                return outcome
        self.saved.add_result(model, self._saved_again(model, out), outcome)
        return outcome

    # --- what has to be there -------------------------------------------------------------------------------------

    def _require_original(self) -> None:
        """Refuse where the original's weights are not here, or are others."""
        name, asked, expected = (self.source[key] for key in ("name", "weights", "sha256"))
        if asked == "random":
            return
        try:
            sha256 = "" if self._is_gone(name) else weights_digest(self.original.here or self.original.fetched())
        except ZooError as error:
            raise Unreproducible(f"{self.path} cannot be made again: its original is not here: {error}") from None
        if not sha256:
            raise Unreproducible(
                f"{self.path} cannot be made again: its original {name!r} is not here{self._looked(name)}."
            )
        if sha256 != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the weights of its original {name!r} are not those it was made from "
                f"(their sha256 begins with {sha256[:SHOWN]} here, and with {expected[:SHOWN] or 'nothing'} in the manifest)."
            )

    @cached_property
    def original(self) -> Located:
        """What the original is, where it is not random."""
        asked = self.source["weights"]
        return locate(self._located(self.source["name"]), asked if asked in OWN else self._located(asked))

    def _located(self, name: str) -> str:
        """A name; a path that exists below the base is meant from there."""
        beside = self.base / name
        return str(beside) if _is_path(name) and beside.exists() else name

    def _is_gone(self, name: str) -> bool:
        """Whether a name is a path that leads nowhere."""
        return _is_path(name) and not Path(self._located(name)).exists()

    def _looked(self, name: str) -> str:
        return (
            f"; looked in {self.base.absolute()} ({spelled('base', '--base')} names another folder)"
            if _is_path(name) and not Path(name).is_absolute()
            else ""
        )

    def _step(self, index: int, stage: Stage) -> _Step:
        label = self.saved.label(index)
        if not stage.made:
            raise Unreproducible(
                f"{self.path} cannot be made again: the manifest does not say what {label} was made with (an older zoo wrote it)."
            )
        self._require_used(stage, label)
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
        return _Step(index, stage, compressor, options, data)

    def _require_used(self, stage: Stage, label: str) -> None:
        """Refuse where a loss, a data source or whatever else a stage took of a plugin cannot be had of it here."""
        for thing, plugin in stage.made.get("uses", {}).items():
            kind, _, name = thing.partition(" ")
            try:
                declaration(kind, name, plugin=plugin)
            except RequestError:
                raise Unreproducible(
                    f"{self.path} cannot be made again: the {kinds.label(kind)} {name!r} of {label} "
                    f"{missing(plugin, self.manifest, then='try again')}"
                ) from None

    def _data(self, role: str, about: Mapping[str, str], label: str) -> Dataset:
        reference, expected = about["reference"], about["fingerprint"]
        try:
            data = open_data(reference, base=self.base)
        except ZooError as error:
            raise Unreproducible(
                f"{self.path} cannot be made again: the {role} data of {label} is not here: {error}"
            ) from None
        if data.fingerprint != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the {role} data of {label}, {reference!r}, is not what it was "
                f"(its sha256 begins with {data.fingerprint[:SHOWN]} here, and with {expected[:SHOWN]} in the manifest)."
            )
        return data

    def _require_teacher(self, name: str, expected: str, label: str) -> None:
        if name == "original" or expected == "random":
            return
        try:
            teacher = None if self._is_gone(name) else locate(self._located(name))
            sha256 = weights_digest(teacher.here or teacher.fetched()) if teacher else ""
        except ZooError as error:
            raise Unreproducible(
                f"{self.path} cannot be made again: the teacher {name!r} of {label} is not here: {error}"
            ) from None
        if sha256 != expected:
            raise Unreproducible(
                f"{self.path} cannot be made again: the teacher {name!r} of {label} is "
                f"{'not what it was' if sha256 else f'not here{self._looked(name)}'}."
            )

    def _other_circumstances(self) -> list[dict[str, str]]:
        """Versions (of stages too) and hardware that differ from those of any stage, each once; the thread count is set as it was."""
        here = circumstances("cpu")
        then: dict[str, str] = {}
        for step in self.steps:
            then |= {key: value for key, value in step.stage.made["with"].items() if value != here.get(key)}
            if step.stage.version != step.compressor.version:
                what = f"version of {self.saved.label(step.index)}"
                then[what], here[what] = str(step.stage.version), str(step.compressor.version)
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
            model = load(self.original, dtype=source["dtype"] or None)
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
        self.progress.say(f"{self.saved.label(step.index)}: making it again")
        model.spec = self.manifest.spec
        context = Context(seed=step.stage.seed, data=step.data, progress=self.progress, load=self._teacher)
        with threads(_threads(step.stage)):
            model.apply(step.compressor, step.options, context)

    def _teacher(self, name: str) -> Model:
        return self._original() if name == "original" else load(self._located(name))

    def _saved_again(self, model: Model, out: str | Path | None) -> Mapping[str, Mapping[str, Any]]:
        """Save the new model; return the files that its manifest lists."""
        model.spec, model.notes = self.manifest.spec, dict(self.manifest.notes)
        with tempfile.TemporaryDirectory() as folder:
            new = store.write(model, Path(out) if out is not None else Path(folder) / "again")
            return read_manifest(new).files


def _threads(stage: Stage) -> int:
    count = stage.made["with"].get("threads", "")
    return int(count) if count.isdecimal() and 0 < int(count) <= 1024 else torch.get_num_threads()


def _is_path(name: str) -> bool:
    return "/" in name or name.startswith(".")


def _base_of(path: Path) -> Path:
    """The folder of the recipe of the run that an artifact is of, where its results say; else the current one."""
    for folder in (path, path.parent.parent):
        try:
            file = json.loads((folder / "results.json").read_text(encoding="utf-8"))["recipe"]["file"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(file, str) and file and Path(file).is_file():
            return Path(file).parent
    return Path()
