"""Speed and memory of saved models, measured in a process of its own: `python -m zoo_compress.measure REQUEST`.

The request is JSON: {"models": [[path, weights, dtype], ...], "options": {...}}. The models are measured in
interleaved rounds, so that what else the machine does touches all alike; peak memory is reset before each is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from zoo.data.dataset import Dataset
from zoo.errors import ZooError
from zoo.model.model import Model
from zoo.options import CompressorOptions

ROUNDS = 3


class SpeedOptions(CompressorOptions):
    """Options of `[evaluate.speed]`."""

    prefill: int = Field(256, ge=1, examples=[16], description="tokens of the prompt whose pass is timed")
    decode: int = Field(32, ge=1, examples=[4], description="tokens generated one by one")
    repeats: int = Field(5, ge=1, examples=[2], description="timed passes, after one that is not")


class Speed:
    """What a model does in a second on this machine: medians over repeats, with their range."""

    Options = SpeedOptions

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `SpeedOptions`; prompt and new tokens are kept within the model's context."""
        asked = SpeedOptions(**options)
        passes = [
            model.family.speeds(model, prefill=asked.prefill, decode=asked.decode) for _ in range(asked.repeats + 1)
        ]
        timed = passes[1:]  # the first warms up
        return {name: _spread([figures[name] for figures in timed], name) for name in passes[0]}


def _spread(values: list[float], name: str) -> dict[str, Any]:
    """The median and the range; "decode_tokens_per_s" is in token/s."""
    ordered = sorted(values)
    unit = f"{name.removesuffix('_per_s').rpartition('_')[2].removesuffix('s')}/s"
    return {
        "value": ordered[len(ordered) // 2],
        "low": ordered[0],
        "high": ordered[-1],
        "unit": unit,
        "better": "higher",
    }


def in_own_process(models: list[tuple[str, str, str]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure models in a fresh process; return the metrics of each, or an empty dict where it could not be measured."""
    request = json.dumps({"models": models, "options": options})
    read_end, write_end = os.pipe()  # closed by the system when this process ends, however it ends
    try:
        done = subprocess.run(
            [sys.executable, "-m", "zoo_compress.measure", request],
            stdin=read_end,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    if done.returncode:
        killed = f"the process was ended by signal {-done.returncode}, as when memory runs out"
        last = [killed] if done.returncode < 0 else done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ZooError(f"Measuring speed failed: {last[0]}. `[evaluate] speed = false` leaves it out.")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def main(request: str) -> None:
    """Measure and print one line of JSON."""
    from zoo import registry
    from zoo.loading.load import load
    from zoo.system.memory import peak_bytes, reset_peak

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = json.loads(request)
    speed = registry.evaluator("speed")
    with contextlib.redirect_stdout(sys.stderr):
        load(asked["models"][0][0], device="meta")  # imports and caches are nobody's memory
        results: list[dict[str, Any]] = [{} for _ in asked["models"]]
        rounds: list[list[dict[str, Any]]] = [[] for _ in asked["models"]]
        for number in range(ROUNDS):
            for index, (path, weights, dtype) in enumerate(asked["models"]):
                gc.collect()
                reset_peak()
                model = load(path, weights=weights, dtype=dtype or None)
                rounds[index].append(speed.measure(model, None, options=asked["options"]))
                if number == 0:
                    results[index]["peak_rss_bytes"] = {"value": peak_bytes(), "unit": "B", "better": "lower"}
                del model
    for index, measured in enumerate(rounds):
        results[index] |= {name: _merge([figures[name] for figures in measured]) for name in measured[0]}
    print(json.dumps(results))


def _end_with_parent() -> None:
    """End when the process that asked has ended, which closes its side of stdin: nobody waits for the answer."""
    os.read(0, 1)
    os._exit(1)


def _merge(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of the rounds, and the range over all of them."""
    ordered = sorted(metrics, key=lambda metric: float(metric["value"]))
    middle = dict(ordered[len(ordered) // 2])
    return middle | {"low": min(m["low"] for m in metrics), "high": max(m["high"] for m in metrics)}


if __name__ == "__main__":
    main(sys.argv[1])
