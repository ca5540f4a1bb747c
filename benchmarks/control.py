"""Does compressing and distilling pay? A quickstart's stages up to its distillation, against two controls, over several seeds.

python benchmarks/control.py [--recipe quickstart|quickstart-vlm|quickstart-t2i] [--seeds 3] [--steps N] [--json FILE]

Both controls train on the same data for the same steps: "no teacher" is the same compressed student on the data alone,
"random" the same small architecture from random weights. Prints the recipe's first quality metric of all three for
every seed, and the mean difference from each control with a 95% interval (Student's t), positive where distilling wins.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from zoo_compress import Recipe, run
from zoo_compress.progress import Terminal
from zoo_compress.train.loop import TrainingOptions

EXAMPLES = Path(__file__).parent.parent / "examples"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", choices=sorted(p.stem for p in EXAMPLES.glob("quickstart*.toml")))
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, help="of the distillation; default: the recipe's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = tomllib.loads((EXAMPLES / f"{args.recipe}.toml").read_text(encoding="utf-8"))
    rows = [measure(variants(data, seed=seed, steps=args.steps)) for seed in range(args.seeds)]
    for seed, row in enumerate(rows):
        print(f"seed {seed}: " + ", ".join(f"{name} {metric['value']:.4f}" for name, metric in row.items()))
    name = rows[0]["distilled"]["name"]
    sign = 1 if rows[0]["distilled"]["better"] == "higher" else -1
    found = {}
    for control in ("no teacher", "random"):
        gaps = [sign * (row["distilled"]["value"] - row[control]["value"]) for row in rows]
        half = T_95[args.seeds] * statistics.stdev(gaps) / len(gaps) ** 0.5
        found[control] = {"mean": statistics.mean(gaps), "half_width": half}
        print(f"{name}: distilled ahead of {control} by {statistics.mean(gaps):.4f} ± {half:.4f} over {len(gaps)} seeds")
    if args.json:
        args.json.write_text(json.dumps({"recipe": args.recipe, "metric": name, "rows": rows, **found}, indent=1))


def variants(data: dict[str, Any], *, seed: int, steps: int | None) -> dict[str, dict[str, Any]]:
    """The recipe up to its distillation, with the random control; and the same trained without a teacher."""
    distilled = copy.deepcopy(data)
    distilled["recipe"]["seed"] = seed
    last = max(i for i, stage in enumerate(data["stage"]) if stage["use"] == "distill")
    distilled["stage"] = distilled["stage"][: last + 1]
    if steps:
        distilled["stage"][last]["steps"] = steps
    distilled["evaluate"] |= {"speed": False, "baselines": [], "prompts": [], "control": True}
    alone = copy.deepcopy(distilled)
    kept = TrainingOptions.model_fields.keys() - {"loss"} | {"data"}
    alone["stage"][last] = {"use": "train", **{key: value for key, value in alone["stage"][last].items() if key in kept}}
    alone["evaluate"]["control"] = False
    return {"distilled": distilled, "no teacher": alone}


def measure(recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run both; the first metric of the distilled student, the student without teacher, and the random control."""
    found: dict[str, dict[str, Any]] = {}
    for name, data in recipes.items():
        with tempfile.TemporaryDirectory() as folder, Terminal() as progress:
            results = run(Recipe.parse(data), out=Path(folder) / "run", progress=progress).results
        metrics = {name: results["stages"][-1]["metrics"]}
        if results["control"]:
            metrics["random"] = results["control"]["metrics"]
        for which, measured in metrics.items():
            key, metric = next(iter(measured.items()))
            found[which] = {"name": key, "better": metric["better"], "value": metric["value"]}
    return found


if __name__ == "__main__":
    main()
