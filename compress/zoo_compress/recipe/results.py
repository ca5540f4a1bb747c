"""What a finished run says of itself: its results, and the notes on the result's card."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import zoo
from zoo.data.dataset import Dataset
from zoo.data.overlap import TEST
from zoo.model.provenance import cpu, versions
from zoo_compress.recipe.job import Job
from zoo_compress.recipe.planned import PlannedStage
from zoo_compress.recipe.recipe import StageRequest

LISTED = 60  # held-out records a card lists by name
SHEET = "samples.png"


def results_of(
    job: Job, stages: tuple[StageRequest, ...], compared: StageRequest | None, *, command: str
) -> dict[str, Any]:
    """Everything the report shows; the first stage is the original.

    Args:
        compared: the stage that the control compares to, if there is one.
        command: what does the same from a shell; "" where the recipe is no file.
    """
    recipe, plan = job.recipe, job.plan
    rows = [
        _row(job, name, plan.stages[index], job.names.planned(index))
        for index, name in enumerate(job.names.up_to(stages))
    ]
    control = None
    if compared:
        name = job.names.control(compared)
        control = _row(job, name, plan.control, name)
        control |= {"label": "from random weights", "compares_to": compared.index + 1}
    return {
        "zoo": zoo.__version__,
        "recipe": {
            "name": recipe.about.name,
            "file": str(recipe.file or ""),
            "seed": recipe.about.seed,
            "overrides": list(recipe.overrides),
            "text": recipe.text or json.dumps(recipe.source, indent=2, default=str),
        },
        "command": command,
        "data": {
            role: {"reference": recipe.data[role], "records": len(data), "sha256": data.fingerprint}
            for role, data in plan.data.items()
        },
        "model": {
            **{key: getattr(plan.spec, key) for key in ("name", "family", "modality", "task", "license")},
            "reference": recipe.model.name,
            "weights": recipe.model.weights,
            "params": plan.stages[0].params,  # which the spec of a model by path does not count
        },
        "machine": machine(),
        **job.folder.times.stop(),
        "stages": rows,
        "control": control,
        "baselines": job.measuring.baselines(),
        "overlaps": [{**asdict(overlap), "said": str(overlap)} for overlap in plan.overlaps],
    }


def _row(job: Job, name: str, planned: PlannedStage | None, kept: str) -> dict[str, Any]:
    """What was planned of a model, at first, under the name `kept`, and what its log says of it."""
    log = job.folder.log(name)
    use = planned.use if planned else "control"
    speed = log.get("speed", {}) if job.recipe.evaluate.speed is not False else {}
    return {
        "use": use,
        "label": use,
        "params": log["params"],
        "bytes": log["bytes"],
        "seconds": log.get("seconds", 0.0),
        "peak_bytes": log.get("peak_bytes"),
        "predicted": job.folder.planned.get(kept),
        "options": dict(planned.options or {}) if planned else {},
        "note": planned.note if planned else "",
        "kernels": dict(planned.kernels) if planned else {},
        "metrics": {**log.get("metrics", {}), **speed},
        "curves": log.get("curves", {}),
        "layers": log.get("layers", {}),
        "samples": log.get("samples", []),
    }


def publish(job: Job, stages: tuple[StageRequest, ...], results: dict[str, Any]) -> None:
    """Write results and report, then the last stage's artifact with its figures on the card."""
    from zoo_compress.report.page import html
    from zoo_compress.report.sheet import contact_sheet

    recipe, names = job.recipe, job.names
    beside = {"results.json": json.dumps(results, indent=1) + "\n", "report.html": html(results)}
    beside |= {"recipe.toml": recipe.as_run()} if recipe.text else {}
    sheet = contact_sheet(results["stages"][-1]["samples"])
    notes = card_notes(results, job.measuring.test)
    notes |= {"Samples": f"![What this model makes]({SHEET})"} if sheet else {}
    job.folder.publish(names.stage(stages[-1]), notes, extra={SHEET: sheet} if sheet else {}, beside=beside)
    job.folder.forget(kept={name(request) for request in recipe.stages for name in (names.stage, names.control)})


def card_notes(results: Mapping[str, Any], test: Dataset | None) -> dict[str, Any]:
    """What the card says beyond the structure: quality before and after, baselines, and what was held out, if it was."""
    notes: dict[str, Any] = {}
    overlaps = results.get("overlaps", [])
    seen = any(TEST in (overlap["role"], overlap["other"]) for overlap in overlaps)
    rows = [("this model", results["stages"][-1]), ("the original", results["stages"][0])]
    rows += [(baseline["label"], baseline) for baseline in results["baselines"]]
    quality: dict[str, str] = {}
    for label, row in rows:
        for name, metric in row["metrics"].items():
            if not _is_cost(metric):
                quality[f"{name.replace('_', ' ')}, {label}"] = _figure(metric)
    for name, metric in results["stages"][-1]["metrics"].items():
        quality |= {
            f"{name.replace('_', ' ')}, {group}": _figure({**figure, "unit": metric.get("unit")})
            for group, figure in metric.get("by", {}).items()
        }
    if quality:
        notes[f"Quality on {'test data that was not held out' if seen else 'held-out data'}"] = quality
    if test is not None:
        places = list(dict.fromkeys(sample.where for sample in test))
        more = [f"and {len(places) - LISTED} more"] if len(places) > LISTED else []
        notes["Test data" if seen else "Held-out data"] = {
            "reference": test.name,
            "records": ", ".join([*places[:LISTED], *more]),
        }
    if overlaps:
        notes["Data in several roles"] = {f"{o['role']} and {o['other']}": o["said"] for o in overlaps}
    notes["Measured with"] = {key: results["machine"][key] for key in (*versions(), "python")}
    return notes


def _is_cost(metric: Mapping[str, Any]) -> bool:
    """Whether a metric is memory or speed, which belong to the machine and not on a card."""
    unit = str(metric.get("unit", ""))
    return unit in ("B", "s") or unit.endswith("/s")


def _figure(metric: Mapping[str, Any]) -> str:
    digits, unit = (1, " %") if metric.get("unit") == "%" else (3, "")
    text = f"{metric['value']:.{digits}f}{unit}"
    if metric.get("low") is not None:
        text += f" (95% interval {metric['low']:.{digits}f} to {metric['high']:.{digits}f})"
    return text + (f", n = {metric['n']} {metric.get('of', '')}".rstrip() if "n" in metric else "")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil
    import torch

    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **versions(),
    }
