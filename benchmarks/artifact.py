"""Artifacts: loading one of ours against plain loading of the same bytes, and saving one; fresh processes, pair by pair.

python benchmarks/artifact.py [--shapes deep,wide] [--repeats 9] [--json FILE]

Plain loading is `safetensors.torch.load_file` and the class of transformers, built on meta and given the tensors with
`assign`: it maps the file, and reads it when the model first runs. Ours compares every byte with the xxh3 of the manifest
while it is mapped; "before" is the same artifact with a manifest as it was written until format 2, where the sha256 of every
file is compared. Time is from after the imports until the model is there, and until its first logits, which read every
weight; that of the processor is the steadier one where others use the machine. Memory is the peak resident set above what
it was after the imports. Saving is measured beside `save_file`, of a model in float32 that is stored in bfloat16.

Shapes: "deep" is SmolLM2-135M with a key/value head for each head, in float32 (591 MB), "wide" four blocks of SmolLM2-1.7B
in bfloat16 (738 MB).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.artifact.manifest import manifest_text

SHAPES = {
    "deep": (
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        "float32",
    ),
    "wide": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 32},
        "bfloat16",
    ),
}
ROWS = {
    "loaded": "until it is there",
    "loaded_cpu": "the same, of the processor",
    "first": "until its first logits",
    "first_cpu": "the same, of the processor",
    "peak": "peak memory",
}
LOAD = """
import json, sys, time
import safetensors.torch, torch, transformers, xxhash, zoo, zoo.artifact.store, zoo.loading.load, zoo.model.model
import zoo.tensors.mapped
from zoo import registry
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes
how, path, dtype = sys.argv[1:4]
registry.family("llama")
transformers.LlamaForCausalLM, transformers.AutoTokenizer, transformers.AutoModelForCausalLM
base = resident_bytes()
reset_peak()
start, busy = time.perf_counter(), time.process_time()
if how == "plain":
    config = transformers.LlamaConfig.from_pretrained(path)
    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(config)
    module.to(getattr(torch, dtype))
    module.load_state_dict(safetensors.torch.load_file(path + "/model.safetensors"), strict=False, assign=True)
    module.tie_weights()
    module.model.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    module.eval()
else:
    module = zoo.load(path).module
found = {"loaded": time.perf_counter() - start, "loaded_cpu": time.process_time() - busy}
with torch.inference_mode():
    logits = module(input_ids=torch.arange(8)[None]).logits
found |= {"first": time.perf_counter() - start, "first_cpu": time.process_time() - busy}
print(json.dumps({**found, "peak": peak_bytes() - base, "sum": float(logits.double().sum())}))
"""
SAVE = """
import json, sys, time
import safetensors.torch, torch, zoo
from zoo.system.memory import peak_bytes, reset_peak, resident_bytes
how, path, out = sys.argv[1:4]
model = zoo.load(path, dtype="float32")
model.stored = "bfloat16"
for parameter in model.module.parameters():  # in memory of its own
    parameter.data = parameter.data.clone()
largest = max(tensor.nbytes for tensor in model.tensors().values())
base = resident_bytes()
reset_peak()
start = time.perf_counter()
if how == "plain":
    safetensors.torch.save_file({name: t.detach() for name, t in model.tensors().items()}, out)
else:
    model.save(out, force=True)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak_bytes() - base, "largest": largest}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="deep,wide")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    for shape in args.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            artifact, dtype = made(Path(folder), shape)
            found[shape] = {"loading": loading(artifact, dtype, args.repeats), "saving": saving(artifact, args.repeats)}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def made(folder: Path, shape: str) -> tuple[Path, str]:
    """An artifact of random weights, and beside it the same with a manifest of format 2."""
    import transformers

    sizes, dtype = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, vocab_size=49152, tie_word_embeddings=True, dtype=dtype)
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder / "plain")
    saved = zoo.load(folder / "plain", dtype=dtype).save(folder / "ours")
    shutil.rmtree(folder / "plain")
    before = shutil.copytree(saved, folder / "before", copy_function=lambda a, b: Path(b).hardlink_to(a))
    manifest = json.loads((saved / "zoo.json").read_text())
    manifest["format"] = 2
    for about in manifest["files"].values():
        del about["xxh3"]
    (before / "zoo.json").unlink()
    (before / "zoo.json").write_text(manifest_text(manifest))
    return saved, dtype


def loading(artifact: Path, dtype: str, repeats: int) -> dict[str, Any]:
    size = (artifact / "model.safetensors").stat().st_size
    ways = {"plain": artifact, "ours": artifact, "before": artifact.parent / "before"}
    runs = interleaved(LOAD, {how: (str(path), dtype) for how, path in ways.items()}, repeats)
    same = len({run["sum"] for done in runs.values() for run in done}) == 1
    print(f"loading {size / 1e6:.0f} MB in {dtype}; same logits: {same}")
    for key, label in ROWS.items():
        print(f"  {label:30} plain {shown(runs['plain'], key)}")
        for how in ("ours", "before"):
            print(f"  {'':30} {how:6} {shown(runs[how], key)}, ratio {ratio(runs[how], runs['plain'], key)}")
    return {"bytes": size, "same": same, **runs}


def saving(artifact: Path, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=artifact.parent) as out:
        arguments = {how: (str(artifact), f"{out}/{how}") for how in ("plain", "ours")}
        runs = interleaved(SAVE, arguments, max(3, repeats // 3))
    print(f"saving in bfloat16; the largest tensor has {runs['ours'][0]['largest'] / 1e6:.0f} MB")
    print(
        f"  seconds                 save_file {shown(runs['plain'], 'seconds')}   ours {shown(runs['ours'], 'seconds')}"
    )
    print(f"  memory beside the model save_file {shown(runs['plain'], 'peak')}   ours {shown(runs['ours'], 'peak')}")
    return runs


def interleaved(code: str, arguments: dict[str, tuple[str, ...]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """What fresh processes print, one of each kind after the other; a first round only warms the files up."""
    runs: dict[str, list[dict[str, Any]]] = {how: [] for how in arguments}
    for number in range(repeats + 1):
        for how, given in arguments.items():
            out = subprocess.run([sys.executable, "-c", code, how, *given], check=True, capture_output=True, text=True)
            if number:
                runs[how].append(json.loads(out.stdout.splitlines()[-1]))
    return runs


def shown(runs: list[dict[str, Any]], key: str) -> str:
    middle = statistics.median(run[key] for run in runs)
    return f"{middle / 1e6:.0f} MB" if key == "peak" else f"{middle:.3f} s"


def ratio(runs: list[dict[str, Any]], plain: list[dict[str, Any]], key: str) -> str:
    """The median of the ratios of pairs, with its 95% bootstrap."""
    ratios, draw = [one[key] / other[key] for one, other in zip(runs, plain, strict=True)], random.Random(0)
    drawn = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return f"{statistics.median(ratios):.2f} [{drawn[25]:.2f}, {drawn[974]:.2f}]"


if __name__ == "__main__":
    main()
