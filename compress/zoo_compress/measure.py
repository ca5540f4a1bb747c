"""Speed and memory of saved models, measured in a process of its own: `python -m zoo_compress.measure REQUEST`.

The request is JSON: {"models": [[path, weights, dtype], ...], "options": {...}}. The models are measured in
interleaved rounds, so that what else the machine does touches all alike; peak memory is reset before each is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
from typing import Any

from zoo.errors import ZooError

ROUNDS = 3


def in_own_process(models: list[tuple[str, str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure models in a fresh process; return the metrics of each, or an empty dict where it could not be measured."""
    request = json.dumps({"models": models, "options": options})
    found = subprocess.run(
        [sys.executable, "-m", "zoo_compress.measure", request], capture_output=True, text=True, check=False
    )
    if found.returncode:
        last = found.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ZooError(f"Measuring speed failed: {last[0]}. `[evaluate] speed = false` leaves it out.")
    results: list[dict[str, Any]] = json.loads(found.stdout.splitlines()[-1])
    return results


def main(request: str) -> None:
    """Measure and print one line of JSON."""
    from zoo import load, registry
    from zoo_compress.memory import peak_bytes, reset_peak

    asked = json.loads(request)
    speed = registry.evaluator("speed")
    with contextlib.redirect_stdout(sys.stderr):
        load(asked["models"][0][0], device="meta")  # imports and caches are nobody's memory
        found: list[dict[str, Any]] = [{} for _ in asked["models"]]
        rounds: list[list[dict[str, Any]]] = [[] for _ in asked["models"]]
        for number in range(ROUNDS):
            for index, (path, weights, dtype) in enumerate(asked["models"]):
                gc.collect()
                reset_peak()
                model = load(path, weights=weights, dtype=dtype or None)
                rounds[index].append(speed.measure(model, None, options=asked["options"]))
                if number == 0:
                    found[index]["peak_rss_bytes"] = {"value": peak_bytes(), "unit": "B", "better": "lower"}
                del model
    for index, measured in enumerate(rounds):
        found[index] |= {name: _merge([one[name] for one in measured]) for name in measured[0]}
    print(json.dumps(found))


def _merge(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the rounds, and the range over all of them."""
    ordered = sorted(metrics, key=lambda metric: float(metric["value"]))
    middle = dict(ordered[len(ordered) // 2])
    return middle | {"low": min(m["low"] for m in metrics), "high": max(m["high"] for m in metrics)}


if __name__ == "__main__":
    main(sys.argv[1])
