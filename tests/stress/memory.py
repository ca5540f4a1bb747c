"""What a plan says a stage will hold, against what it held: each recipe in a process of its own.

    python tests/stress/memory.py [--recipes quickstart,large-distill] [--steps N] [--json FILE] [--seed N]

The recipes are the three quickstarts, and four of a language model of 65 million random weights in a directory, so that
predictions fit more than the models they were made with. Training takes --steps steps (0: as many as the recipe says).
"imports" is a plan again: in a process that has imported much that the recipe does not need, against one that has not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
ALLOWED = 0.25  # of what was measured
QUICKSTARTS = {
    "quickstart": ("stage.3.steps",),
    "quickstart-vlm": ("stage.4.steps",),
    "quickstart-t2i": ("stage.3.steps",),
}
SHORT = {
    "quickstart": (),
    "quickstart-vlm": ("evaluate.exact-match.max_samples=40",),
    "quickstart-t2i": ("evaluate.prompt-agreement.images=10", "evaluate.frechet.images=20"),
}
HEAD = """
[recipe]
name = "large"
[model]
name = "./model"
[data]
train = "stdlib:train[:100]"
calibration = "stdlib:train[:20]"
[evaluate]
tasks = []
speed = false
"""
STAGES = {
    "large-cut": """
[[stage]]
use = "inherit"
layers = "influence:8"
samples = 16
[[stage]]
use = "prune.structured"
ffn = 0.25
importance = "activation"
samples = 8
[[stage]]
use = "share.ffn"
target = "language.blocks[4:]"
[[stage]]
use = "quantize.int8"
""",
    "large-distill": """
[[stage]]
use = "inherit"
layers = "first:5"
[[stage]]
use = "distill"
batch = 4
length = 256
steps = 4
loss = [{ use = "kl" }, { use = "hidden" }]
[[stage]]
use = "quantize.nf4"
""",
    "large-train": """
[[stage]]
use = "prune.magnitude"
sparsity = 0.5
[[stage]]
use = "train"
batch = 8
length = 128
steps = 4
""",
    "large-lowrank": """
[[stage]]
use = "lowrank.svd"
ratio = 0.5
target = "language.attention"
samples = 16
""",
}
OTHERS = ("diffusers", "datasets", "timm", "torchvision", "sklearn.datasets", "torch._inductor")
LARGE = {
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 10,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "vocab_size": 24_000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass
class Figure:
    """One stage of one recipe, in bytes."""

    recipe: str
    stage: str
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured

    @property
    def fits(self) -> bool:
        return abs(self.ratio - 1) <= ALLOWED


def measure(
    name: str, place: Path, *, steps: int, seed: int = 0, config: Mapping[str, object] | None = None
) -> Iterator[Figure]:
    """Run a recipe in a fresh process, and compare what its results say."""
    recipe, overrides = prepared(name, place, seed=seed, config=config or LARGE)
    if steps:
        overrides += [f"{key}={steps}" for key in QUICKSTARTS.get(name, ())] + list(SHORT.get(name, ()))
    arguments = [part for text in [*overrides, "evaluate.speed=false"] for part in ("--set", text)]
    command = [sys.executable, "-m", "zoo", "compress", str(recipe), "--out", str(place / name), "--json", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    yield from figures_of(name, json.loads(done.stdout))


def figures_of(name: str, results: Mapping[str, Any]) -> Iterator[Figure]:
    """What the results of a run say of each stage that was run."""
    rows = [*results["stages"], *([results["control"]] if results["control"] else [])]
    for row in rows:
        if row["peak_bytes"]:
            yield Figure(name, row["use"], row["predicted"]["peak_bytes"], row["peak_bytes"])


def imports(steps: int) -> Figure:
    """What the first quickstart's plan says in a process that has imported much else, against one that has not."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[3:]: importlib.import_module(name)\n"
        "from zoo_compress import Recipe, plan\n"
        "found = plan(Recipe.load(sys.argv[1], overrides=[f'stage.3.steps={sys.argv[2]}']))\n"
        "print(max(stage.peak_bytes for stage in found.stages))\n"
    )
    command = [sys.executable, "-c", script, str(EXAMPLES / "quickstart.toml"), str(max(1, steps))]
    fresh, full = (
        int(subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout)
        for more in ((), OTHERS)
    )
    return Figure("quickstart", "imports", full, fresh)


def prepared(name: str, place: Path, *, seed: int, config: Mapping[str, object]) -> tuple[Path, list[str]]:
    """The recipe file, where it belongs to no example together with the checkpoint of random weights it begins with."""
    if name in QUICKSTARTS:
        return EXAMPLES / f"{name}.toml", []
    if not (place / "model").exists():
        write_checkpoint(place / "model", seed=seed, config=config)
    recipe = place / f"{name}.toml"
    recipe.write_text(HEAD + STAGES[name])
    return recipe, []


def write_checkpoint(folder: Path, *, seed: int, config: Mapping[str, object]) -> None:
    """A plain transformers checkpoint of random weights, with the tokenizer of tiny-code."""
    script = (
        "import sys, json, torch, transformers, zoo\n"
        "config = json.loads(sys.argv[2]); torch.manual_seed(int(sys.argv[3])); transformers.utils.logging.disable_progress_bar()\n"
        "torch.set_default_dtype(getattr(torch, config.get('dtype', 'float32')))\n"
        "transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(sys.argv[1])\n"
        "zoo.load('tiny-code').processor.save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder), json.dumps(config), str(seed)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", default=",".join([*QUICKSTARTS, *STAGES]))
    parser.add_argument("--steps", type=int, default=8, help="training steps; 0: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures: list[Figure] = []
    print(f"{'recipe':16} {'stage':18} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.recipes.split(","):
            start = time.monotonic()
            for figure in measure(name, Path(folder), steps=asked.steps, seed=asked.seed):
                figures.append(figure)
                print(
                    f"{name:16} {figure.stage:18} {figure.predicted / 1e6:7.0f} MB {figure.measured / 1e6:7.0f} MB "
                    f"{figure.ratio:6.2f}{'' if figure.fits else '  outside'}",
                    flush=True,
                )
            print(f"{name:16} took {time.monotonic() - start:.0f} s", flush=True)
    if "quickstart" in asked.recipes.split(","):
        figures.append(imports(asked.steps))
        print(
            f"{'quickstart':16} {'imports':18} {figures[-1].predicted / 1e6:7.0f} MB {figures[-1].measured / 1e6:7.0f} MB {figures[-1].ratio:6.2f}"
        )
    outside = [figure for figure in figures if not figure.fits]
    print(f"{len(figures)} stages, {len(outside)} outside {ALLOWED:.0%}")
    if asked.json:
        asked.json.write_text(
            json.dumps([asdict(figure) | {"ratio": figure.ratio} for figure in figures], indent=1) + "\n"
        )
    return bool(outside)


if __name__ == "__main__":
    sys.exit(main())
