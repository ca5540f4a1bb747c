"""Speed and memory of saved models, measured in a process of its own: `python -m zoo_compress.measure REQUEST`.

The request is JSON: {"models": [[path, weights, dtype], ...], "options": {...}}. The models take turns, round after
round, so that what else the machine does touches all alike, and a round's figures of two models can be compared: the
range of six medians, or of six ratios, holds the median of them all with a chance of 1 - 2 / 2^6, 97 %, whatever their
distribution. Peak memory is reset before each model is loaded.
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
from statistics import median
from typing import Any

from pydantic import Field

from zoo.data.dataset import Dataset
from zoo.errors import ZooError
from zoo.family.task import task_of
from zoo.model.model import Model
from zoo.options import CompressorOptions

ROUNDS = 6


class SpeedOptions(CompressorOptions):
    """Options of `[evaluate.speed]`."""

    prefill: int = Field(256, ge=1, examples=[16], description="tokens of the prompt whose pass is timed")
    decode: int = Field(32, ge=1, examples=[4], description="tokens generated one by one")
    repeats: int = Field(
        3, ge=1, examples=[2], description="timed passes, after one that is not; in each of six rounds"
    )


class Speed:
    """What a model does in a second on this machine: the median of the passes, with their range where there are two."""

    Options = SpeedOptions

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `SpeedOptions`; prompt and new tokens are kept within the model's context."""
        asked = SpeedOptions(**options)
        passes = [
            task_of(model).speeds(model, prefill=asked.prefill, decode=asked.decode) for _ in range(asked.repeats + 1)
        ]
        timed = passes[1:]  # the first warms up
        return {name: _spread([figures[name] for figures in timed], name) for name in passes[0]}


def _spread(values: list[float], name: str) -> dict[str, Any]:
    """The median and the range; "decode_tokens_per_s" is in token/s."""
    unit = f"{name.removesuffix('_per_s').rpartition('_')[2].removesuffix('s')}/s"
    interval = {"low": min(values), "high": max(values)} if len(values) > 1 else {}
    return {"value": median(values), **interval, "n": len(values), "of": "passes", "unit": unit, "better": "higher"}


def in_own_process(
    models: list[tuple[str, str, str]], options: dict[str, Any], *, offload: str | None = None
) -> list[dict[str, Any]]:
    """Measure models in a fresh process; return the metrics of each, or an empty dict where it could not be measured."""
    request = json.dumps({"models": models, "options": options, "offload": offload})
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
            turns = list(enumerate(asked["models"]))
            for index, (path, weights, dtype) in turns if number % 2 == 0 else reversed(turns):
                gc.collect()
                reset_peak()
                model = load(path, weights=weights, dtype=dtype or None, offload=asked["offload"])
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
    """The median of the rounds, with their range; a report compares models round by round."""
    rounds = [metric["value"] for metric in metrics]
    found = {"value": median(rounds), "low": min(rounds), "high": max(rounds), "n": len(rounds), "of": "rounds"}
    return metrics[0] | found | {"rounds": rounds}


if __name__ == "__main__":
    main(sys.argv[1])
