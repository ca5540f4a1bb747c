"""Runs: a recipe, stage by stage, each saved under its fingerprint, so that a rerun redoes only what changed.

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
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo import artifact, loading, registry
from zoo.compressor import Compressor, CompressorOptions, Context, Progress, Silent
from zoo.data import Dataset
from zoo.errors import OutputError, RequestError, nearest
from zoo.files import copy_file, replace_file, sha256_of, why_unwritable
from zoo.model import Model
from zoo_compress.measure import in_own_process
from zoo_compress.memory import peak_bytes, reset_peak
from zoo_compress.planner import Plan, located, plan, stored_of, weights_of
from zoo_compress.recipe import Recipe, StageRequest

MARKER = "run.json"
OURS = re.compile(r"(00-original|(\d\d+-.+|control)-[0-9a-f]{12})(\.json)?")  # names in OUT/stages and OUT/work
DRAFT = re.compile(r"\.(?P<name>.+?)(\.old)?\.[a-z0-9_]{8}")  # what a killed process leaves of a file or folder


@dataclass
class Result:
    """A finished run."""

    out: Path
    results: dict[str, Any]
    skipped: int  # stages that were already there

    def load(self) -> Model:
        """Load the compressed model."""
        return loading.load(self.out)


def apply(
    model: Model, compressor: Compressor | str, options: CompressorOptions | Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Model:
    """Apply one stage to a model in place, such as `zoo_compress.apply(model, "quantize.int8")`.

    Raises:
        Refused: the stage cannot follow what was done to the model before.
    """
    from zoo_compress.recipe import validated

    found = registry.compressor(compressor) if isinstance(compressor, str) else compressor
    chosen = options if isinstance(options, CompressorOptions) else validated(found.Options, options or {}, what=found.name)
    model.apply(found, chosen, context or Context())
    return model


def run(
    recipe: Recipe, *, out: str | Path | None = None, until: str | int | None = None, only: str | int | None = None,
    force: bool = False, progress: Progress | None = None, planned: Plan | None = None,
) -> Result:
    """Run a recipe; finished stages found in `out` are skipped.

    Args:
        out: the output directory; by default runs/<name of the recipe>.
        until: the last stage to run, by number (from 1) or by name. `only` runs one stage on what the earlier left.

    Raises:
        RequestError: the recipe, the data, the stage or the output does not fit. Nothing was written.
    """
    folder = Path(out) if out else Path("runs") / recipe.about.name
    progress = progress or Silent()
    stages = selected(recipe, until=until, only=only)
    check_output(recipe, folder, force=force)
    planned = planned or plan(recipe, out=folder)
    job = _Job(recipe, planned, folder, progress)
    job.identify()
    if only is not None:
        job.require_finished(stages[:-1])
    with _alone(folder):
        job.begin()
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        skipped = job.run_stages(stages)
        control = job.run_control(stages)
        results = job.results(stages, control, started=started, seconds=lambda: time.monotonic() - clock)
        job.publish(stages, results)
    return Result(folder, results, skipped)


def selected(recipe: Recipe, *, until: str | int | None = None, only: str | int | None = None) -> tuple[StageRequest, ...]:
    """The stages a run concerns: all, or those up to and including `until` or `only`, a number from 1 or a name.

    Raises:
        RequestError: there is no such stage, none at all, or both are given.
    """
    if not recipe.stages:
        raise RequestError(f"{recipe.file or 'recipe'}: there is no stage to run; add a [[stage]] table.")
    if until is not None and only is not None:
        raise RequestError("--until and --only exclude each other; give one of them.")
    asked = only if until is None else until
    if asked is None:
        return recipe.stages
    for request in recipe.stages:
        if str(asked) in (str(request.index + 1), request.use):
            return recipe.stages[: request.index + 1]
    names = ", ".join(f"{r.index + 1} ({r.use})" for r in recipe.stages)
    near = nearest(str(asked), [request.use for request in recipe.stages])
    raise RequestError(f"The recipe has no stage {str(asked)!r}.{near} Stages: {names}.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the output directory and hold it: a second run may not write into it. The system lets go when a process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OutputError(f"Another run is writing into {folder}; wait for it, or choose another --out.") from None
    except (ImportError, OSError):  # a system or a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def check_output(recipe: Recipe, folder: Path, *, force: bool = False) -> None:
    """Refuse an output directory that holds something else or cannot be written, before any work."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; name a directory.")
        occupied = folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
    if occupied and not force:
        mine = _marker(folder).get("recipe")
        if mine is None:
            raise OutputError(f"{folder} is not empty and holds no run of this recipe; choose another --out, or pass --force to write into it.")
        if mine != recipe.about.name:
            raise OutputError(f"{folder} holds a run of {mine!r}, not of {recipe.about.name!r}; choose another --out, or pass --force to replace it.")
    if reason := why_unwritable(folder):
        raise OutputError(f"{folder} cannot be written: {reason}.")


def _marker(folder: Path) -> dict[str, Any]:
    """What run.json says, or an empty dict."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class _Job:
    """One run in progress."""

    recipe: Recipe
    plan: Plan
    out: Path
    progress: Progress
    fingerprints: list[str] = field(default_factory=list)
    test: Dataset | None = None

    def identify(self) -> None:
        """Work out the fingerprint of every stage; nothing is written."""
        self.test = self.plan.data.get("test")
        self.fingerprints = [_digest(self._origin())]
        for request in self.recipe.stages:
            self.fingerprints.append(_digest([self.fingerprints[-1], self._inputs(request)]))

    def begin(self) -> None:
        """Say whose directory this is, and remove what a killed run left half-written in it."""
        files = list(_marker(self.out).get("files", []))
        self._mark(files)
        own = {MARKER, "results.json", "report.html", "recipe.toml", artifact.MANIFEST, *files}
        for folder in (self.out, self.out / "stages"):
            for place in folder.iterdir() if folder.is_dir() else ():
                draft = DRAFT.fullmatch(place.name)
                if draft and (draft["name"] in own if folder == self.out else OURS.fullmatch(draft["name"])):
                    _remove(place)

    def _mark(self, files: list[str]) -> None:
        try:
            replace_file(self.out / MARKER, json.dumps({"recipe": self.recipe.about.name, "files": files}) + "\n")
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written: {error.strerror or error}.") from None

    # --- stages -------------------------------------------------------------------------------------------------

    def run_stages(self, stages: tuple[StageRequest, ...]) -> int:
        """Run what is not there yet; return how many stages were."""
        done = 0
        while done < len(stages) and self._finished(self._folder(stages[done])):
            self.progress.say(f"{stages[done].label}: already done")
            done += 1
        self._measured("00-original", self.original)
        model = None
        for request in stages[done:]:
            if model is None:
                model = loading.load(self._folder(stages[done - 1])) if done else self.original()
            model = self._run_stage(request, model)
        for request in stages:
            folder = self._folder(request)
            self._measured(folder.name, partial(loading.load, folder))
        return done

    def _run_stage(self, request: StageRequest, model: Model) -> Model:
        folder = self._folder(request)
        context = self._context(request, folder)
        reset_peak()
        clock = time.monotonic()
        self.progress.say(f"{request.label}: running")
        apply(model, request.compressor, request.options, context)
        model.spec = replace(model.spec, name=self.recipe.about.name, summary=self.recipe.about.summary or model.spec.summary, packaged="")
        self._save(folder, model, context, seconds=time.monotonic() - clock)
        return model

    def _save(self, folder: Path, model: Model, context: Context, *, seconds: float) -> None:
        """The log first, then the artifact: a stage counts as finished when its directory is there."""
        log = {"seconds": round(seconds, 3), "peak_bytes": peak_bytes(), "params": model.params, "bytes": model.bytes,
               "curves": context.curves}  # fmt: skip
        replace_file(_beside(folder), json.dumps(log) + "\n")
        artifact.write(model, folder, force=True)
        shutil.rmtree(self.out / "work" / folder.name, ignore_errors=True)

    def run_control(self, stages: tuple[StageRequest, ...]) -> int | None:
        """Train the architecture the last training stage started from, from random weights, on the data alone.

        Returns the index of the stage it compares to, or None where there is no such stage or it was not asked for.
        """
        trained = [request for request in stages if request.compressor.trains]
        if not self.recipe.evaluate.control or not trained:
            return None
        request = trained[-1]
        folder = self._control_folder(request)
        if not self._finished(folder):
            from zoo_compress.train.loop import TrainingOptions
            from zoo_compress.train.stage import Train

            before = loading.load(self._folder(stages[request.index - 1]), device="meta") if request.index else self.original()
            model = loading.build_random(before.family, before.spec, lineage=before.lineage, dtype=before.dtype,
                                         stored=before.stored, seed=self.recipe.about.seed)  # fmt: skip
            model.processor = self.original().processor
            shared = {key: getattr(request.options, key) for key in (*TrainingOptions.model_fields, "data")}
            context = self._context(request, folder)
            reset_peak()
            clock = time.monotonic()
            self.progress.say("control: the same architecture from random weights")
            apply(model, Train(), Train.Options(**shared), context)
            self._save(folder, model, context, seconds=time.monotonic() - clock)
        self._measured(folder.name, partial(loading.load, folder))
        return request.index + 1

    def original(self) -> Model:
        """Load the recipe's model, fresh."""
        asked = self.recipe.model
        model = loading.load(located(self.recipe, asked.name), weights=weights_of(self.recipe), dtype=asked.dtype or None)
        model.stored = asked.stored or stored_of(self.recipe, model)
        model.round()
        return model

    def require_finished(self, stages: tuple[StageRequest, ...]) -> None:
        for request in stages:
            if not self._finished(self._folder(request)):
                raise RequestError(f"--only needs the stages before it, and {request.label} is not done; run with --until {request.index + 1} first.")

    # --- measuring ----------------------------------------------------------------------------------------------

    def _measured(self, name: str, load: Any) -> None:
        """Measure quality and take samples, unless the log says it was done for these tasks, data and prompts."""
        evaluate = self.recipe.evaluate
        log = self._log(name)
        asked = _digest([evaluate.model_dump(mode="json", exclude={"control", "speed"}), self.test and self.test.fingerprint])
        if log.get("asked") == asked:
            return
        model = load()
        metrics: dict[str, Any] = {}
        untrained = model.origin == "random" and model.processor is None  # a recipe that trains from nothing
        for task in evaluate.tasks if self.test and not untrained else ():
            self.progress.say(f"{name}: measuring {task}")
            metrics |= registry.evaluator(task).measure(model, self.test, options=evaluate.options(task))
        samples = [] if untrained else model.family.samples(model, evaluate.prompts)
        log |= {"asked": asked, "metrics": metrics, "samples": samples, "params": model.params, "bytes": model.bytes}
        replace_file(self.out / "stages" / f"{name}.json", json.dumps(log) + "\n")

    def _speed(self, names: list[str]) -> None:
        """Measure speed and memory of all models side by side in one other process, unless all logs have them."""
        logs = {name: self._log(name) for name in names}
        options = self.recipe.evaluate.options("speed")
        if self.recipe.evaluate.speed is False or all("speed" in log and log.get("speed_asked") == options for log in logs.values()):
            return
        self.progress.say("measuring speed and memory in a process of its own")
        asked = self.recipe.model
        models: list[tuple[str, str, str]] = [
            (located(self.recipe, asked.name), weights_of(self.recipe), asked.dtype) if name == "00-original"
            else (str(self.out / "stages" / name), "auto", "")
            for name in names
        ]  # fmt: skip
        for (name, log), speed in zip(logs.items(), in_own_process(models, options), strict=True):
            replace_file(self.out / "stages" / f"{name}.json", json.dumps(log | {"speed": speed, "speed_asked": options}) + "\n")

    def results(
        self, stages: tuple[StageRequest, ...], control: int | None, *, started: str, seconds: Any
    ) -> dict[str, Any]:
        """Everything the report shows; the first stage is the original."""
        names = ["00-original", *(self._folder(request).name for request in stages)]
        extra = [self._control_folder(stages[control - 1]).name] if control else []
        self._speed([*names, *extra])
        rows = [self._row(name, i) for i, name in enumerate(names)]
        return {
            "zoo": version("zoo"),
            "recipe": {"name": self.recipe.about.name, "file": str(self.recipe.file or ""), "seed": self.recipe.about.seed},
            "model": {key: getattr(self.plan.spec, key) for key in ("name", "family", "modality", "license", "params")},
            "machine": machine(),
            "started": started,
            "seconds": round(seconds(), 1),
            "stages": rows,
            "control": {**self._row(extra[0], None), "compares_to": control} if control else None,
            "baselines": self._baselines(),
        }

    def _row(self, name: str, index: int | None) -> dict[str, Any]:
        log = self._log(name)
        planned = self.plan.stages[index] if index is not None else None
        return {
            "use": planned.use if planned else "control",
            "label": planned.use if planned else "from random weights",
            "params": log["params"],
            "bytes": log["bytes"],
            "seconds": log.get("seconds", 0.0),
            "peak_bytes": log.get("peak_bytes", 0),
            "predicted": {"params": planned.params, "bytes": planned.bytes, "peak_bytes": planned.peak_bytes} if planned else None,
            "options": dict(planned.options or {}) if planned else {},
            "note": planned.note if planned else "",
            "metrics": {**log.get("metrics", {}), **(log.get("speed", {}) if self.recipe.evaluate.speed is not False else {})},
            "curves": log.get("curves", {}),
            "samples": log.get("samples", []),
        }

    def _baselines(self) -> list[dict[str, Any]]:
        names = self.recipe.evaluate.baselines if self.test else ()
        return [
            {"label": registry.evaluator(n).label,
             "metrics": registry.evaluator(n).measure(None, self.test, options=self.recipe.evaluate.options(n))}
            for n in names
        ]

    # --- the result ---------------------------------------------------------------------------------------------

    def publish(self, stages: tuple[StageRequest, ...], results: dict[str, Any]) -> None:
        """Put the last stage's artifact, the results and the report into the output directory, the manifest last."""
        from zoo_compress.report import html

        replace_file(self.out / "results.json", json.dumps(results, indent=1) + "\n")
        replace_file(self.out / "report.html", html(results))
        if self.recipe.text:
            replace_file(self.out / "recipe.toml", self.recipe.as_run())
        self._put(self._folder(stages[-1]))
        self._forget({self._folder(r).name for r in self.recipe.stages} | {self._control_folder(r).name for r in self.recipe.stages})

    def _put(self, source: Path) -> None:
        """Copy an artifact into the output directory. Killed anywhere, the directory holds either no model or a whole one."""
        artifact.require_intact(source)
        files, old = artifact.read(source).files, _marker(self.out).get("files", [])
        manifest = self.out / artifact.MANIFEST
        if manifest.is_file() and manifest.read_bytes() == (source / manifest.name).read_bytes() and not artifact.verify(self.out):
            return
        self._mark(sorted({*files, *old}))
        for name in (manifest.name, "config.json", *old):  # what makes a directory a model goes first
            (self.out / name).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == "config.json"):  # and comes last
            copy_file(source / name, self.out / name)
        copy_file(source / manifest.name, manifest)
        self._mark(sorted(files))

    def _forget(self, kept: set[str]) -> None:
        """Remove stages and checkpoints of earlier versions of the recipe."""
        for folder in (self.out / "stages", self.out / "work"):
            for place in folder.iterdir() if folder.is_dir() else ():
                if OURS.fullmatch(place.name) and place.name.removesuffix(".json") not in {*kept, "00-original"}:
                    _remove(place)
        with suppress(OSError):  # not there, or not empty
            (self.out / "work").rmdir()

    # --- places and fingerprints --------------------------------------------------------------------------------

    def _folder(self, request: StageRequest) -> Path:
        return self.out / "stages" / f"{request.index + 1:02d}-{request.use}-{self.fingerprints[request.index + 1][:12]}"

    def _control_folder(self, request: StageRequest) -> Path:
        print_ = _digest(["control", self.fingerprints[request.index + 1]])
        return self.out / "stages" / f"control-{print_[:12]}"

    def _finished(self, folder: Path) -> bool:
        return (folder / artifact.MANIFEST).exists() and _beside(folder).exists()

    def _log(self, name: str) -> dict[str, Any]:
        try:
            log: dict[str, Any] = json.loads((self.out / "stages" / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return log

    def _context(self, request: StageRequest, folder: Path) -> Context:
        work = self.out / "work" / folder.name
        work.mkdir(parents=True, exist_ok=True)
        return Context(
            seed=self.recipe.about.seed, data=self.plan.data, progress=self.progress, checkpoint=work,
            load=lambda name: self.original() if name == "original" else loading.load(located(self.recipe, name)),
        )

    def _origin(self) -> dict[str, Any]:
        """What the original is: spec, weights, dtypes, and the versions numbers depend on."""
        asked = self.recipe.model
        return {
            "config": self.plan.spec.config, "weights": _weights_hash(self.recipe), "asked": asked.model_dump(),
            "name": self.recipe.about.model_dump(), "versions": versions(),
        }

    def _inputs(self, request: StageRequest) -> dict[str, Any]:
        roles = request.compressor.roles(request.options)
        teacher = str(getattr(request.options, "teacher", "original"))
        return {
            "use": request.use, "version": request.compressor.version, "options": request.options.model_dump(mode="json"),
            "data": {role: self.plan.data[role].fingerprint for role in roles},
            "teacher": "" if teacher == "original" else _folder_hash(Path(located(self.recipe, teacher))) or teacher,
        }


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: version(name) for name in ("zoo", "torch", "transformers", "tokenizers")}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil
    import torch

    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total, "python": platform.python_version(), **versions(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _weights_hash(recipe: Recipe) -> str:
    """A hash of the weights the run starts from, read from their files."""
    from zoo import catalog, weights

    asked = weights_of(recipe)
    if asked == "random":
        return "random"
    if asked != "auto":
        return _folder_hash(Path(asked))
    place = Path(located(recipe, recipe.model.name))
    return _folder_hash(place if place.is_dir() else weights.resolve(catalog.info(recipe.model.name)))


def _folder_hash(folder: Path) -> str:
    if not folder.is_dir():
        return sha256_of(folder) if folder.is_file() else ""
    counted = (".safetensors", ".json", ".txt", ".model")  # weights, and what the tokenizer is made of
    return _digest({p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.suffix in counted and p.is_file()})


def _beside(folder: Path) -> Path:
    """The log of a stage, beside its directory."""
    return folder.parent / f"{folder.name}.json"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()
