"""Loading: `zoo.load` against transformers' `from_pretrained` on the same weights, each in fresh processes, interleaved.

python benchmarks/load.py [MODEL_DIR] [--repeats 5] [--json FILE]

Without MODEL_DIR: the packaged tiny-code, and a random model of SmolLM2-135M's shape saved by zoo. Time is from after the
imports to the first logits of an 8-token prompt; memory is the peak resident set above what it was after the imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, time
import torch, transformers, zoo, zoo.loading, zoo.model, zoo.artifact, safetensors.torch
from zoo import registry
from zoo_compress.memory import peak_bytes, reset_peak, resident_bytes
how, path, dtype = sys.argv[1:4]
registry.family("llama")
transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM, transformers.AutoTokenizer
base = resident_bytes()
reset_peak()
start = time.perf_counter()
if how == "zoo":
    module = zoo.load(path, dtype=dtype).module
else:
    module = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True)
    transformers.AutoTokenizer.from_pretrained(path, local_files_only=True) if "tiny" in path else None
with torch.inference_mode():
    logits = module(input_ids=torch.arange(8)[None]).logits
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": peak_bytes() - base, "sum": float(logits.double().sum())}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, dtype in [(args.model.name, args.model, "float32")] if args.model else _defaults(Path(folder)):
            found[name] = compare(path, dtype, args.repeats)
            ours, theirs = found[name]["zoo"], found[name]["transformers"]
            print(f"{name} ({dtype}): same logits: {found[name]['same']}")
            for key, unit, scale in (("seconds", "s", 1.0), ("peak", "MB", 1e6)):
                print(f"  {key:8} zoo {ours[key] / scale:9.3f} {unit}   from_pretrained {theirs[key] / scale:9.3f} {unit}"
                      f"   ratio {ours[key] / theirs[key]:.2f}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def compare(path: Path, dtype: str, repeats: int) -> dict:
    runs: dict[str, list[dict]] = {"zoo": [], "transformers": []}
    for _ in range(repeats + 1):
        for how, done in runs.items():
            out = subprocess.run([sys.executable, "-c", CHILD, how, str(path), dtype], check=True, capture_output=True, text=True)
            done.append(json.loads(out.stdout.splitlines()[-1]))
    medians = {how: {key: statistics.median(run[key] for run in done[1:]) for key in ("seconds", "peak")} for how, done in runs.items()}
    return {**medians, "same": runs["zoo"][0]["sum"] == runs["transformers"][0]["sum"]}


def _defaults(folder: Path) -> list[tuple[str, Path, str]]:
    from zoo import catalog, weights
    from zoo.catalog import ModelSpec
    from zoo.loading import build_random
    from zoo.registry import family

    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    spec = ModelSpec(name="smollm2-135m-shape", family="llama", modality="text", task="causal-lm", plugin="zoo_slm", config=config)
    saved = build_random(family("llama"), spec, dtype="bfloat16").save(folder / "smollm2-135m-shape")
    packaged = weights.packaged_at(catalog.info("tiny-code"))
    assert packaged is not None
    return [("tiny-code", packaged, "float32"), ("smollm2-135m-shape", saved, "bfloat16")]


if __name__ == "__main__":
    main()
