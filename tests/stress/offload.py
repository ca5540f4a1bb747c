"""Compress a model under a limit of memory (RLIMIT_DATA) that is smaller than its weights, and compare the bytes.

    python tests/stress/offload.py [--layers N] [--limit BYTES] [--json FILE] [--seed N]

A plain transformers checkpoint of random weights in bf16, some gigabytes, goes through calibrated stages: `quantize.int4` by
AWQ and GPTQ, and `prune.sparsegpt`, after which the weights stay as large as they were. With `offload` the run must end
under the limit, without it the model must not even load; a run without the limit must leave the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import HEAD, write_checkpoint

STAGES = {
    "int4": """
[[stage]]
use = "quantize.int4"
method = "gptq"
overrides = [{ pattern = "*.mlp.*", method = "rounding" }]    # where GPTQ takes longest
embedding = true
samples = 8
length = 128
""",
    "sparsegpt": """
[[stage]]
use = "prune.sparsegpt"
sparsity = 0.5
samples = 8
length = 128
""",
}
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 24_000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}


def compressed(recipe: Path, out: Path, *, limit: int | None, offload: bool) -> tuple[str, float]:
    """Run a recipe; return the last line of what it said where it failed, else "", and the seconds."""
    command = [sys.executable, "-m", "zoo", "compress", str(recipe), "--out", str(out), "--ignore-memory"]
    command += ["--set", f"model.offload={str(offload).lower()}"]

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    start = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, preexec_fn=limited)
    said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return said[-1] if done.returncode else "", time.monotonic() - start


def hashes(out: Path) -> dict[str, Any]:
    manifest = json.loads((out / "zoo.json").read_text())
    return {name: about["sha256"] for name, about in manifest["files"].items() if name.endswith(".safetensors")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--limit", type=float, default=2.4e9, help="bytes of RLIMIT_DATA")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_checkpoint(place / "model", seed=asked.seed, config=SHAPE | {"num_hidden_layers": asked.layers})
        size = sum(file.stat().st_size for file in (place / "model").glob("*.safetensors"))
        print(f"a model of {size / 1e9:.2f} GB, under a limit of {asked.limit / 1e9:.2f} GB")
        for name in asked.stages.split(","):
            recipe = place / f"{name}.toml"
            recipe.write_text(HEAD + STAGES[name])
            limit = int(asked.limit)
            problem, seconds = compressed(recipe, place / f"{name}-limited", limit=limit, offload=True)
            refused, _ = compressed(recipe, place / f"{name}-plain", limit=limit, offload=False)
            free, plain_seconds = compressed(recipe, place / f"{name}-free", limit=None, offload=False)
            same = not problem and hashes(place / f"{name}-limited") == hashes(place / f"{name}-free")
            figures.append(
                {"stage": name, "bytes": size, "limit": limit, "seconds": seconds, "plain_seconds": plain_seconds}
                | {"problem": problem or free, "refused": refused, "same": same}
            )
            print(
                f"{name:10} offloaded {problem or f'{seconds:.0f} s'}; without {refused or 'it ran as well'}; "
                f"{'the same bytes' if same else 'OTHER BYTES'} as unlimited ({free or f'{plain_seconds:.0f} s'})",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    return not all(figure["same"] and figure["refused"] for figure in figures)


if __name__ == "__main__":
    sys.exit(main())
