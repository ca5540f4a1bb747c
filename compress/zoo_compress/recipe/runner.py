"""Runs: a recipe, stage by stage, each saved under its fingerprint, so that a rerun redoes only what changed.

A fingerprint follows from everything a stage depends on: the weights it starts from, its options, its data, the seed,
and the versions that numbers depend on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import zoo
from zoo import catalog, registry
from zoo.artifact import store
from zoo.compressor import Compressor
from zoo.data.dataset import Dataset
from zoo.errors import OutputError, RequestError, nearest
from zoo.evaluation.figures import measure
from zoo.loading import weights
from zoo.loading.load import load
from zoo.model.context import Context, Progress, Silent
from zoo.model.model import Model, build_random
from zoo.options import CompressorOptions
from zoo.plugins.names import declaration, declaration_of, family_declaration, is_known, outside_distributions
from zoo.system import signals
from zoo.system.memory import peak_bytes, reset_peak
from zoo_compress.measure import in_own_process
from zoo_compress.recipe.fingerprints import digest, machine, versions, weights_digest
from zoo_compress.recipe.folder import RunFolder, repairable
from zoo_compress.recipe.needs import require_memory
from zoo_compress.recipe.planned import Plan
from zoo_compress.recipe.planner import control_of, plan
from zoo_compress.recipe.recipe import Recipe, StageRequest, blamed, located, weights_of
from zoo_compress.recipe.results import SHEET, card_notes


@dataclass
class Result:
    """A finished run."""

    out: Path
    results: dict[str, Any]
    skipped: int  # stages that were already there

    def load(self) -> Model:
        """Load the compressed model."""
        return load(self.out)


def apply(
    model: Model,
    compressor: Compressor | str,
    options: CompressorOptions | Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Model:
    """Apply one stage to a model in place, such as `zoo_compress.apply(model, "quantize.int8")`.

    Raises:
        Refused: the stage cannot follow what was done to the model before.
    """
    from zoo.options import validated

    found = registry.compressor(compressor) if isinstance(compressor, str) else compressor
    chosen = (
        options if isinstance(options, CompressorOptions) else validated(found.Options, options or {}, what=found.name)
    )
    model.apply(found, chosen, context or Context())
    return model


def run(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    until: str | int | None = None,
    only: str | int | None = None,
    force: bool = False,
    ignore_memory: bool = False,
    progress: Progress | None = None,
    planned: Plan | None = None,
) -> Result:
    """Run a recipe; finished stages found in `out` are skipped.

    Args:
        out: the output directory; by default runs/<name of the recipe>.
        until: the last stage to run, by number (from 1) or by name. `only` runs one stage on what the earlier left.
        ignore_memory: begin even where the plan needs more memory than there is.

    Raises:
        RequestError: the recipe, the data, the stage or the output does not fit. Nothing was written.
    """
    folder = Path(out) if out else Path("runs") / recipe.about.name
    progress = progress or Silent()
    stages = selected(recipe, until=until, only=only)
    place = RunFolder(folder, recipe.about.name)
    place.check(force=force)
    planned = planned or plan(recipe, out=folder)
    job = _Job(recipe, planned, place, progress)
    job.identify()
    if only is not None:
        job.require_finished(stages[:-1])
    if not ignore_memory:
        require_memory(planned, done=job.finished(stages))
    with place.held(), resumable(folder):
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        skipped = job.run_stages(stages)
        control = job.run_control(stages)
        results = job.results(stages, control, started=started, seconds=lambda: time.monotonic() - clock)
        job.publish(stages, results)
    return Result(folder, results, skipped)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Add to what could not be written that a run goes on from what is finished."""
    try:
        yield
    except OutputError as error:
        if not folder.is_dir():
            raise
        raise OutputError(
            f"{error} What is finished is kept in {folder}: the same command goes on from there."
        ) from error


def selected(
    recipe: Recipe, *, until: str | int | None = None, only: str | int | None = None
) -> tuple[StageRequest, ...]:
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
        if str(asked) in (str(request.index + 1), request.use, request.asked):
            return recipe.stages[: request.index + 1]
    names = ", ".join(f"{r.index + 1} ({r.use})" for r in recipe.stages)
    near = nearest(str(asked), [request.use for request in recipe.stages])
    raise RequestError(f"The recipe has no stage {str(asked)!r}.{near} Stages: {names}.")


@dataclass
class _Job:
    """One run in progress."""

    recipe: Recipe
    plan: Plan
    folder: RunFolder
    progress: Progress
    fingerprints: list[str] = field(default_factory=list)
    test: Dataset | None = None

    def identify(self) -> None:
        """Work out the fingerprint of every stage; nothing is written."""
        self.test = self.plan.data.get("test")
        self.fingerprints = [digest(self._origin())]
        for request in self.recipe.stages:
            self.fingerprints.append(digest([self.fingerprints[-1], self._inputs(request)]))

    # --- stages -------------------------------------------------------------------------------------------------

    def run_stages(self, stages: tuple[StageRequest, ...]) -> int:
        """Run what is not there yet; return how many stages were."""
        done = 0
        while done < len(stages) and self.folder.finished(self._name(stages[done])):
            self.progress.say(f"{stages[done].label}: already done")
            done += 1
        self._measured("00-original", self.original)
        model = None
        for request in stages[done:]:
            if model is None:
                model = self._finished(stages[done - 1]) if done else self.original()
            model = self._run_stage(request, model)
        for request in stages:
            self._measured(self._name(request), partial(self._finished, request))
        return done

    def _saved(self, name: str) -> Model:
        with repairable(self.folder.stage(name)):
            return load(self.folder.stage(name))

    def _finished(self, request: StageRequest) -> Model:
        """Load what a stage left; weights that were drawn at random are still known as such."""
        model = self._saved(self._name(request))
        model.origin = "random" if weights_of(self.recipe) == "random" else model.origin
        return model

    def _run_stage(self, request: StageRequest, model: Model) -> Model:
        signals.check()
        name = self._name(request)
        context = self._context(name)
        reset_peak()
        clock = time.monotonic()
        self.progress.say(f"{request.label}: running")
        with blamed(request):
            apply(model, request.compressor, request.options, context)
        model.spec = replace(
            model.spec,
            name=self.recipe.about.name,
            summary=self.recipe.about.summary or model.spec.summary,
            packaged="",
        )
        self._save(name, model, context, seconds=time.monotonic() - clock)
        return model

    def _save(self, name: str, model: Model, context: Context, *, seconds: float) -> None:
        """The log first, then the artifact: a stage counts as finished when its directory is there."""
        log = {
            "seconds": round(seconds, 3),
            "peak_bytes": peak_bytes(),
            "params": model.params,
            "bytes": model.bytes,
            "curves": context.curves,
        }
        self.folder.write_log(name, log)
        store.write(model, self.folder.stage(name), force=True)
        shutil.rmtree(self.folder.work(name), ignore_errors=True)

    def run_control(self, stages: tuple[StageRequest, ...]) -> int | None:
        """Train the architecture the last training stage started from, from random weights, on the data alone.

        Returns the index of the stage it compares to, or None where there is no such stage or it was not asked for.
        """
        trained = [request for request in stages if request.compressor.trains]
        if not self.recipe.evaluate.control or not trained:
            return None
        request = trained[-1]
        name = self._control_name(request)
        if not self.folder.finished(name):
            self._train_control(name, request, stages)
        self._measured(name, partial(self._saved, name))
        return request.index + 1

    def _train_control(self, name: str, request: StageRequest, stages: tuple[StageRequest, ...]) -> None:
        start = self.folder.stage(self._name(stages[request.index - 1])) if request.index else None
        before = load(start, device="meta") if start else self.original()
        model = build_random(
            before.family,
            before.spec,
            lineage=before.lineage,
            dtype=before.dtype,
            stored=before.stored,
            seed=self.recipe.about.seed,
        )
        model.processor = before.processor
        context = self._context(name)
        reset_peak()
        clock = time.monotonic()
        self.progress.say("control: the same architecture from random weights")
        apply(model, *control_of(request), context)
        self._save(name, model, context, seconds=time.monotonic() - clock)

    def original(self) -> Model:
        """Load the recipe's model, fresh."""
        asked = self.recipe.model
        model = load(located(self.recipe, asked.name), weights=weights_of(self.recipe), dtype=asked.dtype or None)
        model.stored = self.plan.stored
        model.round()
        # as written, wherever it is run
        model.source |= {"name": asked.name, "weights": asked.weights, "rounded": model.stored}
        return model

    def finished(self, stages: tuple[StageRequest, ...]) -> set[str]:
        """What of a plan need not run: stages that are there, that are not asked for, and the control likewise."""
        done = {r.label for r in self.recipe.stages if r not in stages or self.folder.finished(self._name(r))}
        trained = [request for request in stages if request.compressor.trains]
        return done | ({"control"} if not trained or self.folder.finished(self._control_name(trained[-1])) else set())

    def require_finished(self, stages: tuple[StageRequest, ...]) -> None:
        for request in stages:
            if not self.folder.finished(self._name(request)):
                raise RequestError(
                    f"--only needs the stages before it, and {request.label} is not done; run with --until {request.index + 1} first."
                )

    # --- measuring ----------------------------------------------------------------------------------------------

    def _measured(self, name: str, load: Any) -> None:
        """Measure quality and take samples, unless the log says it was done for these tasks, data and prompts."""
        evaluate = self.recipe.evaluate
        log = self.folder.log(name)
        asked = digest(
            [evaluate.model_dump(mode="json", exclude={"control", "speed"}), self.test and self.test.fingerprint]
        )
        if log.get("asked") == asked:
            return
        signals.check()
        model = load()
        metrics: dict[str, Any] = {}
        # a recipe that trains from nothing
        untrained = model.origin == "random" and model.processor is None and model.family.needs_processor
        for task in evaluate.tasks if self.test and not untrained else ():
            self.progress.say(f"{name}: measuring {task}")
            with blamed(self.recipe.where("evaluate", "tasks")):
                metrics |= measure(task, model, self.test, options=evaluate.options(task))
        with blamed(self.recipe.where("evaluate", "prompts")):
            samples = [] if untrained else model.family.samples(model, evaluate.prompts, self.test)
        log |= {"asked": asked, "metrics": metrics, "samples": samples, "params": model.params, "bytes": model.bytes}
        self.folder.write_log(name, log)

    def _speed(self, names: list[str]) -> None:
        """Measure speed and memory of all models side by side in one other process, unless all logs have them."""
        logs = {name: self.folder.log(name) for name in names}
        options = self.recipe.evaluate.options("speed")
        if self.recipe.evaluate.speed is False or all(
            "speed" in log and log.get("speed_asked") == options for log in logs.values()
        ):
            return
        self.progress.say("measuring speed and memory in a process of its own")
        asked = self.recipe.model
        models: list[tuple[str, str, str]] = [
            (located(self.recipe, asked.name), weights_of(self.recipe), asked.dtype)
            if name == "00-original"
            else (str(self.folder.stage(name)), "auto", "")
            for name in names
        ]
        for (name, log), speed in zip(logs.items(), in_own_process(models, options), strict=True):
            self.folder.write_log(name, log | {"speed": speed, "speed_asked": options})

    def results(
        self, stages: tuple[StageRequest, ...], control: int | None, *, started: str, seconds: Any
    ) -> dict[str, Any]:
        """Everything the report shows; the first stage is the original."""
        names = ["00-original", *(self._name(request) for request in stages)]
        extra = [self._control_name(stages[control - 1])] if control else []
        self._speed([*names, *extra])
        rows = [self._row(name, i) for i, name in enumerate(names)]
        return {
            "zoo": zoo.__version__,
            "recipe": {
                "name": self.recipe.about.name,
                "file": str(self.recipe.file or ""),
                "seed": self.recipe.about.seed,
            },
            "model": {
                **{key: getattr(self.plan.spec, key) for key in ("name", "family", "modality", "task", "license")},
                "params": self.plan.stages[0].params,
            },  # the spec of a model by path does not count them
            "machine": machine(),
            "started": started,
            "seconds": round(seconds(), 1),
            "stages": rows,
            "control": {**self._row(extra[0], None), "compares_to": control} if control else None,
            "baselines": self._baselines(),
        }

    def _row(self, name: str, index: int | None) -> dict[str, Any]:
        log = self.folder.log(name)
        planned = self.plan.stages[index] if index is not None else self.plan.control
        return {
            "use": planned.use if planned else "control",
            "label": planned.use if planned and index is not None else "from random weights",
            "params": log["params"],
            "bytes": log["bytes"],
            "seconds": log.get("seconds", 0.0),
            "peak_bytes": log.get("peak_bytes"),
            "predicted": {"params": planned.params, "bytes": planned.bytes, "peak_bytes": planned.peak_bytes}
            if planned
            else None,
            "options": dict(planned.options or {}) if planned else {},
            "note": planned.note if planned else "",
            "metrics": {
                **log.get("metrics", {}),
                **(log.get("speed", {}) if self.recipe.evaluate.speed is not False else {}),
            },
            "curves": log.get("curves", {}),
            "samples": log.get("samples", []),
        }

    def _baselines(self) -> list[dict[str, Any]]:
        names = self.recipe.evaluate.baselines if self.test else ()
        return [
            {
                "label": registry.evaluator(n).label,
                "metrics": measure(n, None, self.test, options=self.recipe.evaluate.options(n)),
            }
            for n in names
        ]

    # --- the result ---------------------------------------------------------------------------------------------

    def publish(self, stages: tuple[StageRequest, ...], results: dict[str, Any]) -> None:
        """Write results and report, then the last stage's artifact with its figures on the card."""
        from zoo_compress.report.page import html
        from zoo_compress.report.sheet import contact_sheet

        beside = {"results.json": json.dumps(results, indent=1) + "\n", "report.html": html(results)}
        beside |= {"recipe.toml": self.recipe.as_run()} if self.recipe.text else {}
        sheet = contact_sheet(results["stages"][-1]["samples"])
        notes = card_notes(results, self.test) | ({"Samples": f"![What this model makes]({SHEET})"} if sheet else {})
        self.folder.publish(self._name(stages[-1]), notes, extra={SHEET: sheet} if sheet else {}, beside=beside)
        every = self.recipe.stages
        self.folder.forget(kept={name(request) for request in every for name in (self._name, self._control_name)})

    # --- names and fingerprints ---------------------------------------------------------------------------------

    def _name(self, request: StageRequest) -> str:
        return f"{request.index + 1:02d}-{request.use}-{self.fingerprints[request.index + 1][:12]}"

    def _control_name(self, request: StageRequest) -> str:
        return f"control-{digest(['control', self.fingerprints[request.index + 1]])[:12]}"

    def _context(self, name: str) -> Context:
        return Context(
            seed=self.recipe.about.seed,
            data=self.plan.data,
            progress=self.progress,
            checkpoint=self.folder.work(name),
            load=lambda name: self.original() if name == "original" else load(located(self.recipe, name)),
        )

    def _origin(self) -> dict[str, Any]:
        """What the original is: spec, weights, dtypes, and the versions numbers depend on."""
        asked = self.recipe.model
        outside = outside_distributions(family_declaration(self.plan.spec))
        return {
            "config": self.plan.spec.config,
            "weights": _weights_digest(self.recipe),
            "asked": asked.model_dump(),
            "name": self.recipe.about.model_dump(),
            "versions": {**versions(), **outside},
        }

    def _inputs(self, request: StageRequest) -> dict[str, Any]:
        roles = request.compressor.roles(request.options)
        teacher = str(getattr(request.options, "teacher", "original"))
        losses = [
            str(term["use"])
            for term in getattr(request.options, "loss", None) or ()
            if isinstance(term, dict) and "use" in term
        ]
        named = [declaration("loss", name) for name in losses if is_known("loss", name)]
        outside = outside_distributions(declaration_of("compressor", request.compressor, request.use), *named)
        return {
            **({"plugins": outside} if outside else {}),
            "use": request.use,
            "version": request.compressor.version,
            "options": request.options.model_dump(mode="json"),
            "data": {role: self.plan.data[role].fingerprint for role in roles},
            "teacher": "" if teacher == "original" else weights_digest(Path(located(self.recipe, teacher))) or teacher,
        }


def _weights_digest(recipe: Recipe) -> str:
    """A hash of the weights the run starts from, read from their files."""
    asked = weights_of(recipe)
    if asked == "random":
        return "random"
    if asked != "auto":
        return weights_digest(Path(asked))
    place = Path(located(recipe, recipe.model.name))
    return weights_digest(place if place.is_dir() else weights.resolve(catalog.info(recipe.model.name)))
