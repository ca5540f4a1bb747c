"""What is asked of every stage on every model: refused in the plan, or applied as planned, saved, and back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import zoo_compress
from contract.cases import OPTIONS, context, recipe
from findings import FAILED, REFUSED, Finding, attempt, must
from model_checks import reloaded

import zoo
from zoo.model.model import Model
from zoo.testing.exact import require
from zoo.testing.fresh import FreshProcess

STAGES = tuple(OPTIONS)


def check_stage(
    use: str,
    options: Mapping[str, Any],
    reference: str | Path,
    models: Mapping[str, Model],
    folder: Path,
    fresh: FreshProcess,
) -> Iterator[Finding]:
    """Plan a stage from the directory alone, then run it on the model in every precision.

    Args:
        reference: what `zoo.load` takes.
        models: the loaded model by dtype; each is left as it is.
    """
    random = use == "vocabulary.bpe"  # which trained weights cannot follow
    modality = next(iter(models.values())).spec.modality
    asked = recipe(reference, [(use, dict(options))], folder)
    if modality != "text":
        asked["data"] = dict.fromkeys(asked["data"], str(pictures(folder / "pictures")))
    if random or not Path(reference).is_dir():
        asked["model"]["weights"] = "random"
    planned: list[Any] = []
    plan = attempt(use, "", lambda: planned.append(zoo_compress.plan(zoo_compress.Recipe.parse(asked))))
    if plan.verdict == REFUSED and plan.sentence.startswith("recipe, [model]"):  # refused for no reason of the stage
        plan = Finding(use, "", FAILED, f"zoo.load takes it, the plan refuses the model: {plan.sentence}")
    if plan.verdict in (REFUSED, FAILED):
        yield plan
        return
    for dtype, model in models.items():
        start = zoo.load(reference, weights="random", dtype=dtype) if random else model
        artifact = folder / f"{use} {dtype}"
        run = partial(_run, start, use, options, planned[0], artifact, fresh)
        if planned[0].stages[-1].untried:  # as the plan says: a run tries it before its first stage
            yield attempt(use, dtype, run)
        else:
            yield must(use, dtype, run, why="the plan takes it, the run refuses")


def pictures(folder: Path) -> Path:
    """Eight small pictures, each in the folder of its class."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label in range(8):
        (folder / str(label)).mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / str(label) / "picture.png")
    return folder


def _run(start: Model, use: str, options: Mapping[str, Any], planned: Any, artifact: Path, fresh: FreshProcess) -> None:
    model = start.copy()
    zoo_compress.apply(model, use, dict(options), context(start))
    require(
        model.params == planned.stages[-1].params,
        f"the plan says {planned.stages[-1].params:,} parameters, the run leaves {model.params:,}",
    )
    reloaded(model, artifact, fresh)
