"""Saving: with the proof that what was written is the model in memory, and without it, interleaved.

python benchmarks/save.py [--shapes smollm2-135m] [--repeats 5]

The packaged tiny-code and random weights in the shapes of --shapes, in float32 and bfloat16. Without the proof is as zoo
saved before it had one: the files are written, hashed and synced alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import zoo
from zoo.artifact import proof
from zoo.model.model import Model
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes

PROVE = proof.require_same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name in ("tiny-code", *args.shapes.split(",")):
        for dtype in ("float32", "bfloat16"):
            model = zoo.load(name, weights="auto" if name == "tiny-code" else "random", dtype=dtype)
            compare(f"{name} ({dtype}, {model.bytes / 1e6:.0f} MB)", model, args.repeats)


def compare(label: str, model: Model, repeats: int) -> None:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    peaks: dict[bool, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats + 1):
            for proven in seconds:
                proof.require_same = PROVE if proven else lambda *_: None
                reset_peak()
                before, start = resident_bytes(), time.perf_counter()
                model.save(Path(folder) / "saved", force=True)
                seconds[proven].append(time.perf_counter() - start)
                peaks[proven] = peak_bytes() - before
    proof.require_same = PROVE
    with_it, without = (statistics.median(seconds[proven][1:]) for proven in (True, False))
    print(f"{label}: {with_it:.2f} s with the proof, {without:.2f} s without, ratio {with_it / without:.2f}")
    print(f"  peak memory beside the model: {peaks[True] / 1e6:.0f} MB with, {peaks[False] / 1e6:.0f} MB without")


if __name__ == "__main__":
    main()
