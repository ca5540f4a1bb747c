"""A run in progress: the stages and the control, each saved in the run's folder and measured there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from zoo.artifact import store
from zoo.errors import RequestError, spelled
from zoo.loading.load import load
from zoo.loading.locate import Located
from zoo.model.context import Context, Progress
from zoo.model.model import Model, build_random
from zoo.system import signals
from zoo.system.memory import peak_bytes, reset_peak
from zoo_compress.recipe.fingerprints import ORIGINAL, Names
from zoo_compress.recipe.folder import RunFolder, repairable
from zoo_compress.recipe.measuring import Measuring
from zoo_compress.recipe.planned import Plan, PlannedStage
from zoo_compress.recipe.planner import control_of
from zoo_compress.recipe.recipe import Recipe, StageRequest, blamed
from zoo_compress.recipe.rehearsal import rehearse
from zoo_compress.train.team import Team


@dataclass(frozen=True)
class Job:
    """One recipe, and the folder its stages are run in."""

    recipe: Recipe
    plan: Plan
    folder: RunFolder
    names: Names
    measuring: Measuring
    progress: Progress
    team: Team

    def run_stages(self, stages: tuple[StageRequest, ...]) -> int:
        """Run what is not there yet, and measure all; return how many stages were there."""
        done = 0
        while done < len(stages) and self.folder.finished(self.names.stage(stages[done])):
            self.progress.say(f"{stages[done].label}: already done")
            done += 1
        self._rehearse(stages, done)
        self.measuring.quality(ORIGINAL, self._original)
        model = None
        for request in stages[done:]:
            if model is None:
                model = self._left_by(stages[done - 1]) if done else self._original()
            model = self._run_stage(request, model)
        for request in stages:
            self.measuring.quality(self.names.stage(request), partial(self._left_by, request))
        return done

    def run_control(self, stages: tuple[StageRequest, ...]) -> StageRequest | None:
        """Train the architecture the last training stage started from, from random weights, on the data alone.

        Returns the stage it compares to, if there is one.
        """
        request = self.compared(stages)
        if request is None:
            return None
        name = self.names.control(request)
        if not self.folder.finished(name):
            self._train_control(name, request, stages)
        self.measuring.quality(name, partial(self._saved, name))
        return request

    def train_along(self, stages: tuple[StageRequest, ...]) -> None:
        """Train what the first process trains, until it has finished the run; nothing is written or measured here."""
        while number := self.team.hear():
            if number <= len(self.recipe.stages):
                request = self.recipe.stages[number - 1]
                before = self._left_by(self.recipe.stages[number - 2]) if request.index else self._original()
                with blamed(request):
                    before.apply(request.compressor, request.options, self._context(self.names.stage(request)))
            elif beside := self.compared(stages):
                self._untrained(beside, stages).apply(*control_of(beside), self._context(self.names.control(beside)))

    def finished(self, stages: tuple[StageRequest, ...]) -> set[str]:
        """What of a plan need not run: stages that are there, that are not asked for, and the control likewise."""
        done = {
            request.label
            for request in self.recipe.stages
            if request not in stages or self.folder.finished(self.names.stage(request))
        }
        request = _last_training(stages)
        if request is None or self.folder.finished(self.names.control(request)):
            done.add("control")
        return done

    def keep_plan(self, compared: StageRequest | None) -> None:
        """Keep what was planned at first, before any stage: a later process holds other memory, and plans otherwise."""
        planned = {self.names.planned(index): _foreseen(stage) for index, stage in enumerate(self.plan.stages)}
        if compared and self.plan.control:
            planned[self.names.control(compared)] = _foreseen(self.plan.control)
        self.folder.keep_plan(planned)

    def compared(self, stages: tuple[StageRequest, ...]) -> StageRequest | None:
        """The stage that the control compares to, or None where there is no such stage or it was not asked for."""
        return _last_training(stages) if self.recipe.evaluate.control else None

    def require_finished(self, stages: tuple[StageRequest, ...]) -> None:
        for request in stages:
            if not self.folder.finished(self.names.stage(request)):
                raise RequestError(
                    f"{spelled('only', '--only')} needs the stages before it, and {request.label} is not done; "
                    f"run with {spelled('until=', '--until ')}{request.index + 1} first."
                )

    # --- models ---------------------------------------------------------------------------------------------------

    def _original(self) -> Model:
        """Load the recipe's model, fresh."""
        asked = self.recipe.model
        model = self._load(self.plan.original, dtype=asked.dtype or None)
        model.stored = self.plan.stored
        model.round()
        # as written, wherever it is run
        model.source |= {"name": asked.name, "weights": asked.weights, "rounded": model.stored}
        return model

    def _load(self, what: Located | Path, *, dtype: str | None = None) -> Model:
        return load(what, dtype=dtype, offload=self.folder.path if self.recipe.model.offload else None)

    def _saved(self, name: str) -> Model:
        with repairable(self.folder.stage(name)):
            return self._load(self.folder.stage(name))

    def _left_by(self, request: StageRequest) -> Model:
        """Load what a stage left; weights that were drawn at random are still known as such."""
        model = self._saved(self.names.stage(request))
        model.origin = "random" if self.plan.original.weights == "random" else model.origin
        return model

    def _teacher(self, name: str) -> Model:
        return self._original() if name == "original" else self._load(self.plan.teachers[name])

    def _untrained(self, request: StageRequest, stages: tuple[StageRequest, ...]) -> Model:
        """The architecture that a stage starts from, with random weights."""
        start = self.folder.stage(self.names.stage(stages[request.index - 1])) if request.index else None
        before = load(start, device="meta") if start else self._original()
        model = build_random(
            before.family,
            before.spec,
            lineage=before.lineage,
            dtype=before.dtype,
            stored=before.stored,
            seed=self.recipe.about.seed,
        )
        model.processor = before.processor
        return model

    def _rehearse(self, stages: tuple[StageRequest, ...], done: int) -> None:
        """Try the stages that are to be run on real tensors, where the plan could not tell whether the model runs after them."""
        untried = [request for request in stages[done:] if self.plan.stages[request.index + 1].untried]
        if untried:
            self.progress.say("trying all stages before the first")
            start = self._left_by(stages[done - 1]) if done else self._original()
            rehearse(start, stages[done : untried[-1].index + 1], seed=self.recipe.about.seed)

    # --- work -----------------------------------------------------------------------------------------------------

    def _run_stage(self, request: StageRequest, model: Model) -> Model:
        signals.check()
        name = self.names.stage(request)
        context = self._context(name)
        reset_peak()
        self.progress.say(f"{request.label}: running")
        with self.folder.timed(name) as seconds:
            if request.compressor.trains:
                self.team.tell(request.index + 1)
            with blamed(request):
                model.apply(request.compressor, request.options, context)
            model.spec = replace(
                model.spec,
                name=self.recipe.about.name,
                summary=self.recipe.about.summary or model.spec.summary,
                packaged="",
                distribution="",
            )
            self._save(name, model, context, seconds)
        return model

    def _train_control(self, name: str, request: StageRequest, stages: tuple[StageRequest, ...]) -> None:
        model = self._untrained(request, stages)
        context = self._context(name)
        reset_peak()
        self.progress.say("control: the same architecture from random weights")
        self.team.tell(len(self.recipe.stages) + 1)
        with self.folder.timed(name) as seconds:
            model.apply(*control_of(request), context)
            self._save(name, model, context, seconds)

    def _context(self, name: str) -> Context:
        return Context(
            seed=self.recipe.about.seed,
            data=self.plan.data,
            progress=self.progress,
            checkpoint=self.folder.work(name, make=not self.team.rank),
            load=self._teacher,
        )

    def _save(self, name: str, model: Model, context: Context, seconds: Callable[[], float]) -> None:
        """The log first, then the artifact: a stage counts as finished when its directory is there."""
        log = {
            "seconds": round(seconds(), 3),
            "peak_bytes": peak_bytes(),
            "params": model.params,
            "bytes": model.bytes,
            "curves": context.curves,
            "layers": model.lineage[-1].record.get("layers", {}),  # what a stage says of each layer it calibrated
        }
        self.folder.write_log(name, log)
        store.write(model, self.folder.stage(name), force=True)
        shutil.rmtree(self.folder.work(name), ignore_errors=True)


def _foreseen(stage: PlannedStage) -> dict[str, int]:
    return {"params": stage.params, "bytes": stage.bytes, "peak_bytes": stage.peak_bytes}


def _last_training(stages: tuple[StageRequest, ...]) -> StageRequest | None:
    return next((request for request in reversed(stages) if request.compressor.trains), None)
