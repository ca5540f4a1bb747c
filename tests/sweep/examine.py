"""Every check of one architecture, in the order in which they make sense."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from architectures import Architecture, NotBuilt, library_model, save
from contract.cases import OPTIONS
from findings import DTYPES, FAILED, NOT_BUILT, WORKS, Finding, attempt
from model_checks import check_model
from stage_checks import check_stage

import zoo
from zoo.model.model import Model
from zoo.testing.fresh import FreshProcess


def examine(
    architecture: Architecture, folder: Path, fresh: FreshProcess, stages: Sequence[str] = tuple(OPTIONS)
) -> Iterator[Finding]:
    """Build it with its library, and ask everything; each finding as soon as it is known."""
    try:
        reference, library, targets = prepared(architecture, folder)
    except NotBuilt as error:
        yield Finding("build", "", NOT_BUILT, str(error))
        return
    yield Finding("build", "", WORKS)
    models: dict[str, Model] = {}
    for dtype in DTYPES:
        loaded = attempt("load", dtype, partial(_load, models, reference, dtype))
        yield loaded
    if models.get("float32") is None:
        return
    for dtype, model in models.items():
        yield from check_model(model, reference, library, folder / f"as loaded {dtype}", fresh)
    for use in stages:
        options = {**OPTIONS[use], **targets.get(use, {})}
        chosen = {name: value for name, value in options.items() if value is not None}
        yield from _stage(use, chosen, reference, models, folder, fresh)


def _load(models: dict[str, Model], reference: str, dtype: str) -> None:
    weights = {} if Path(reference).is_dir() else {"weights": "random"}
    models[dtype] = zoo.load(reference, dtype=dtype, **weights)  # type: ignore[arg-type]


def _stage(
    use: str, options: dict[str, Any], reference: str, models: dict[str, Model], folder: Path, fresh: FreshProcess
) -> Iterator[Finding]:
    workplace = folder / use
    workplace.mkdir()
    try:
        yield from check_stage(use, options, reference, models, workplace, fresh)
    except Exception as error:  # a fault of the sweep itself is not to hide the other stages
        yield Finding(use, "", FAILED, f"the sweep itself: {type(error).__name__}: {error}"[:200])
    shutil.rmtree(workplace, ignore_errors=True)


def prepared(architecture: Architecture, folder: Path) -> tuple[str, Any, dict[str, dict[str, Any]]]:
    """What `zoo.load` takes, the library's own model, and the options of stages that differ.

    Raises:
        NotBuilt: the library does not make a small one.
    """
    if architecture.part == "timm":
        from timm_models import small_model

        return small_model(architecture.name)
    if architecture.part == "diffusers":
        from pipelines_of import small_pipeline

        return small_pipeline(architecture.name, folder / "pipeline")
    made = library_model(architecture)
    saved = save(made, folder / "model", architecture.task)
    try:  # as the library reads it: what it does not save (Marian's positions) is as it builds it
        library = type(made).from_pretrained(saved, dtype=torch.float32).eval()
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError):
        library = made
    return str(saved), library, {}
