"""Runs: a recipe, stage by stage, each saved under its fingerprint, so that a rerun redoes only what changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.compressor import Compressor
from zoo.errors import OutputError, RequestError, nearest, spelled
from zoo.loading.load import load
from zoo.model.context import Context, Progress, Silent
from zoo.model.model import Model
from zoo.options import CompressorOptions, validated
from zoo.system.processes import require_data_parallel
from zoo_compress.recipe.fingerprints import names_of
from zoo_compress.recipe.folder import RunFolder
from zoo_compress.recipe.job import Job
from zoo_compress.recipe.measuring import Measuring
from zoo_compress.recipe.needs import require_memory
from zoo_compress.recipe.planned import Plan
from zoo_compress.recipe.planner import plan
from zoo_compress.recipe.recipe import Recipe, StageRequest
from zoo_compress.recipe.results import publish, results_of
from zoo_compress.train.team import Team


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
    stage = registry.compressor(compressor) if isinstance(compressor, str) else compressor
    chosen = (
        options if isinstance(options, CompressorOptions) else validated(stage.Options, options or {}, what=stage.name)
    )
    model.apply(stage, chosen, context or Context())
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

    Of several processes that torchrun started, the first runs it, and the others train along. All get the result.

    Args:
        out: the output directory; by default runs/<name of the recipe>.
        until: the last stage to run, by number (from 1) or by name. `only` runs one stage on what the earlier left.
        ignore_memory: begin even where the plan needs more memory than there is.

    Raises:
        RequestError: the recipe, the data, the stage or the output does not fit, or the processes that were started
            together do not each hold the whole model. Nothing was written.
    """
    require_data_parallel("A run")
    path = Path(out) if out else Path("runs") / recipe.about.name
    progress = progress or Silent()
    stages = selected(recipe, until=until, only=only)
    folder = RunFolder(path, recipe.about.name)
    folder.check(force=force)
    planned = planned or plan(recipe, out=path)
    recipe = planned.recipe
    names = names_of(recipe, planned)
    measuring = Measuring(recipe, folder, progress, planned.data.get("test"), planned.original, names.fingerprints[0])
    team = Team.here()
    job = Job(recipe, planned, folder, names, measuring, progress, team)
    if team.rank:
        job.train_along(stages)
        return Result(path, json.loads((path / "results.json").read_text(encoding="utf-8")), skipped=0)
    if only is not None:
        job.require_finished(stages[:-1])
    if not ignore_memory:
        require_memory(planned, done=job.finished(stages))
    with folder.held(), resumable(path):
        job.keep_plan(job.compared(recipe.stages))
        skipped = job.run_stages(stages)
        compared = job.run_control(stages)
        measuring.speed([*names.up_to(stages), *([names.control(compared)] if compared else [])])
        asked = {"--out": out, "--until": until, "--only": only}
        results = results_of(job, stages, compared, command=command_of(recipe, asked))
        publish(job, stages, results)
    team.tell(0)
    return Result(path, results, skipped)


def command_of(recipe: Recipe, options: Mapping[str, str | int | Path | None]) -> str:
    """What runs a recipe from a shell as it was run; "" where it is no file."""
    if recipe.file is None:
        return ""
    given = [*(("--set", override) for override in recipe.overrides), *options.items()]
    words = [word for flag, value in given if value is not None for word in (flag, str(value))]
    return shlex.join(["zoo", "compress", str(recipe.file), *words])


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
        raise RequestError(f"{spelled('until and only', '--until and --only')} exclude each other; give one of them.")
    asked = only if until is None else until
    if asked is None:
        return recipe.stages
    for request in recipe.stages:
        if str(asked) in (str(request.index + 1), request.use, request.asked):
            return recipe.stages[: request.index + 1]
    names = ", ".join(f"{r.index + 1} ({r.use})" for r in recipe.stages)
    near = nearest(str(asked), [request.use for request in recipe.stages])
    raise RequestError(f"The recipe has no stage {str(asked)!r}.{near} Stages: {names}.")
