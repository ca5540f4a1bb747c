"""Loading: `zoo.load` against transformers' `from_pretrained` on the same weights, each in fresh processes, interleaved.

python benchmarks/load.py [MODEL_DIR] [--shapes smollm2-135m,smollm2-1.7b] [--repeats 5] [--json FILE]

Without MODEL_DIR: the packaged tiny-code, and random weights in the shapes of --shapes, saved by zoo (which compares every
byte with its xxh3 when it loads) and by transformers, by this one in float32 too, where zoo copies what does not lie as its
kernels like it. Time is from after the imports to the first logits of an 8-token
prompt; memory is the peak resident set above what it was after the imports, and its ratio to the size of the files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zoo

CHILD = """
import json, sys, time
import torch, transformers, zoo, zoo.loading.load, zoo.model.model, zoo.artifact.store, safetensors.torch
from zoo import registry
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes
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
    parser.add_argument("--shapes", default="smollm2-135m,smollm2-1.7b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path, dtype in (
            [(args.model.name, args.model, "float32")] if args.model else _made(Path(folder), args.shapes.split(","))
        ):
            found[name] = compare(path, dtype, args.repeats)
            ours, theirs = found[name]["zoo"], found[name]["transformers"]
            print(f"{name} ({dtype}): same logits: {found[name]['same']}")
            for key, unit, scale in (("seconds", "s", 1.0), ("peak", "MB", 1e6)):
                print(
                    f"  {key:8} zoo {ours[key] / scale:9.3f} {unit}   from_pretrained {theirs[key] / scale:9.3f} {unit}"
                    f"   ratio {ours[key] / theirs[key]:.2f}"
                )
            size = found[name]["bytes"]
            print(
                f"  peak over size of the files ({size / 1e6:.0f} MB): zoo {ours['peak'] / size:.2f}, from_pretrained {theirs['peak'] / size:.2f}"
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def compare(path: Path, dtype: str, repeats: int) -> dict:
    runs: dict[str, list[dict]] = {"zoo": [], "transformers": []}
    for _ in range(repeats + 1):
        for how, done in runs.items():
            out = subprocess.run(
                [sys.executable, "-c", CHILD, how, str(path), dtype], check=True, capture_output=True, text=True
            )
            done.append(json.loads(out.stdout.splitlines()[-1]))
    medians = {
        how: {key: statistics.median(run[key] for run in done[1:]) for key in ("seconds", "peak")}
        for how, done in runs.items()
    }
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {**medians, "bytes": size, "same": runs["zoo"][0]["sum"] == runs["transformers"][0]["sum"]}


def _made(folder: Path, names: list[str]) -> Iterator[tuple[str, Path, str]]:
    """The packaged tiny-code, and random models of catalogued shapes, each as zoo and as transformers save it."""
    from zoo import catalog
    from zoo.loading import weights

    packaged = weights.packaged_at(catalog.info("tiny-code"))
    assert packaged is not None
    yield "tiny-code", packaged, "float32"
    for name in names:
        model = zoo.load(name, weights="random", dtype="bfloat16")
        model.save(folder / f"{name}-zoo")
        model.module.save_pretrained(folder / f"{name}-transformers")
        model.module.float().save_pretrained(folder / f"{name}-transformers-float32")
        del model
        for form, dtype in (("zoo", "bfloat16"), ("transformers", "bfloat16"), ("transformers-float32", "float32")):
            place = folder / f"{name}-{form}"
            yield f"{name}, saved by {form.partition('-')[0]}", place, dtype
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
