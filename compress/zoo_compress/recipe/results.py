"""What a finished run says of itself: the notes on the result's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.data.dataset import Dataset
from zoo_compress.recipe.fingerprints import versions

LISTED = 60  # held-out records a card lists by name
SHEET = "samples.png"


def card_notes(results: Mapping[str, Any], test: Dataset | None) -> dict[str, Any]:
    """What the card says beyond the structure: quality before and after, baselines, and what was held out."""
    notes: dict[str, Any] = {}
    rows = [("this model", results["stages"][-1]), ("the original", results["stages"][0])]
    rows += [(baseline["label"], baseline) for baseline in results["baselines"]]
    quality: dict[str, str] = {}
    for label, row in rows:
        for name, metric in row["metrics"].items():
            if not _is_cost(metric):
                quality[f"{name.replace('_', ' ')}, {label}"] = _figure(metric)
    for name, metric in results["stages"][-1]["metrics"].items():
        quality |= {
            f"{name.replace('_', ' ')}, {group}": _figure({**found, "unit": metric.get("unit")})
            for group, found in metric.get("by", {}).items()
        }
    if quality:
        notes["Quality on held-out data"] = quality
    if test is not None:
        places = list(dict.fromkeys(sample.where for sample in test))
        more = [f"and {len(places) - LISTED} more"] if len(places) > LISTED else []
        notes["Held-out data"] = {"reference": test.name, "records": ", ".join([*places[:LISTED], *more])}
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
    return text + (f", n = {metric['n']}" if "n" in metric else "")
