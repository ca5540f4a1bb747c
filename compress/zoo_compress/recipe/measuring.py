"""What is measured of the models of a run: quality, samples and speed, kept in the logs of the run's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.data.dataset import Dataset
from zoo.evaluation.figures import measure
from zoo.family.task import task_of
from zoo.loading.locate import Located
from zoo.model.context import Progress
from zoo.model.model import Model
from zoo.system import signals
from zoo_compress.measure import in_own_process
from zoo_compress.recipe.fingerprints import ORIGINAL, digest
from zoo_compress.recipe.folder import RunFolder
from zoo_compress.recipe.recipe import Recipe, blamed


@dataclass(frozen=True)
class Measuring:
    """Measures what a recipe asks for, of one model after the other; what the logs have is not measured again."""

    recipe: Recipe
    folder: RunFolder
    progress: Progress
    test: Dataset | None
    located: Located  # the original
    original: str  # the fingerprint of the original, which its name does not hold

    def quality(self, name: str, load: Callable[[], Model]) -> None:
        """Measure quality and take samples, unless the log says it was done for these tasks, data and prompts."""
        evaluate = self.recipe.evaluate
        log = self.folder.log(name)
        versions = {task: getattr(registry.evaluator(task), "version", 1) for task in evaluate.tasks or ()}
        chosen = evaluate.model_dump(mode="json", exclude={"control", "speed"})
        original = [self.original] if name == ORIGINAL else []
        asked = digest([chosen, self.test and self.test.fingerprint, versions, *original])
        if log.get("asked") == asked:
            return
        signals.check()
        model = load()
        metrics: dict[str, Any] = {}
        # a recipe that trains from nothing
        untrained = model.origin == "random" and model.processor is None and model.family.needs_processor
        for task in (evaluate.tasks or ()) if self.test and not untrained else ():
            self.progress.say(f"{name}: measuring {task}")
            with blamed(self.recipe.where("evaluate", "tasks")):
                metrics |= measure(task, model, self.test, options=evaluate.options(task))
        with blamed(self.recipe.where("evaluate", "prompts")):
            samples = [] if untrained else task_of(model).samples(model, evaluate.prompts, self.test)
        log |= {"asked": asked, "metrics": metrics, "samples": samples, "params": model.params, "bytes": model.bytes}
        self.folder.write_log(name, log)

    def speed(self, names: Sequence[str]) -> None:
        """Measure speed and memory of all models side by side in one other process, unless all logs have them."""
        logs = {name: self.folder.log(name) for name in names}
        options = self.recipe.evaluate.options("speed") | {"original": self.original}
        together = len({log.get("speed_measured") for log in logs.values()}) == 1
        there = all("speed" in log and log.get("speed_asked") == options for log in logs.values())
        if self.recipe.evaluate.speed is False or (there and together):
            return
        self.progress.say("measuring speed and memory in a process of its own")
        asked = self.recipe.model
        models: list[tuple[str, str, str]] = [
            (self.located.asked, str(self.located.weights), asked.dtype)
            if name == ORIGINAL
            else (str(self.folder.stage(name)), "auto", "")
            for name in names
        ]
        offload = str(self.folder.path) if asked.offload else None
        now = time.time()  # the same for all: figures of several times, which a kill can leave, are not compared
        for (name, log), speed in zip(
            logs.items(), in_own_process(models, self.recipe.evaluate.options("speed"), offload=offload), strict=True
        ):
            self.folder.write_log(name, log | {"speed": speed, "speed_asked": options, "speed_measured": now})

    def baselines(self) -> list[dict[str, Any]]:
        """Measure what needs only the test data, and no model."""
        evaluate = self.recipe.evaluate
        return [
            {
                "label": registry.evaluator(name).label,
                "metrics": measure(name, None, self.test, options=evaluate.options(name)),
            }
            for name in (evaluate.baselines if self.test else ())
        ]
