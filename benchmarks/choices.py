"""What a choice costs: the same cuts chosen without a look at the data, and by what a little calibration data does inside.

python benchmarks/choices.py [MODEL] [--blocks 5] [--ffn 0.1] [--tokens 16384] [--json FILE]

Held-out perplexity of tiny-code, or of another language model, after `inherit` and `prune.structured` alone, before any
training repairs them; calibrated on 64 windows of the standard library's source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zoo_compress import apply

import zoo
from zoo import registry
from zoo.data.open import open_data
from zoo.model.context import Context

CALIBRATION = {"samples": 64, "length": 256}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny-code")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--ffn", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cuts = [("inherit", {"layers": f"{way}:{asked.blocks}"}) for way in ("first", "influence")]
    cuts += [("prune.structured", {"ffn": asked.ffn, "importance": way}) for way in ("magnitude", "activation")]
    found = {"original": perplexity(zoo.load(asked.model), asked.tokens)}
    calibration = open_data("stdlib:train[:32]")
    for use, options in cuts:
        model = zoo.load(asked.model)
        apply(model, use, {**options, **CALIBRATION}, Context(data={"calibration": calibration}))
        found[f"{use} {next(reversed(options.values()))}"] = perplexity(model, asked.tokens)
    for name, value in found.items():
        print(f"{name:<30} perplexity {value:>12,.1f}   x{value / found['original']:,.2f}")
    if asked.json:
        asked.json.write_text(json.dumps({"asked": vars(asked) | {"json": str(asked.json)}, "perplexity": found}))


def perplexity(model: zoo.Model, tokens: int) -> float:
    """Perplexity on the standard library's held-out part."""
    measured = registry.evaluator("perplexity").measure(model, open_data("stdlib:test"), options={"max_tokens": tokens})
    return float(measured["perplexity"]["value"])


if __name__ == "__main__":
    main()
