"""Does compressing and distilling pay? A quickstart's stages up to its distillation, against two controls, over several seeds.

python benchmarks/control.py [--recipe quickstart|quickstart-vlm|quickstart-t2i] [--task T]... [--seeds 3] [--steps N] [--json FILE]

Both controls train on the same data for the same steps: "no teacher" is the same compressed student on the data alone,
"random" the same small architecture from random weights. Prints the quality metrics of the recipe's tasks (or those
given) for all three and every seed, and the mean difference from each control with a 95% interval (Student's t),
positive where distilling wins. velocity-error is measured in the model's own latent: there "random" says nothing.
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
from zoo_compress.recipe.progress import Terminal
from zoo_compress.train.options import TrainingOptions

EXAMPLES = Path(__file__).parent.parent / "examples"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", default="quickstart", choices=sorted(p.stem for p in EXAMPLES.glob("quickstart*.toml"))
    )
    parser.add_argument("--task", action="append", help="measure this instead of the recipe's tasks; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, help="of the distillation; default: the recipe's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = tomllib.loads((EXAMPLES / f"{args.recipe}.toml").read_text(encoding="utf-8"))
    if args.task:  # options of tasks left out would be refused
        kept = {
            key: value for key, value in data["evaluate"].items() if not isinstance(value, dict) or key in args.task
        }
        data["evaluate"] = {**kept, "tasks": args.task}
    rows = [measure(variants(data, seed=seed, steps=args.steps)) for seed in range(args.seeds)]
    found: dict[str, Any] = {}
    for metric, about in rows[0]["distilled"].items():
        if "better" not in about:
            continue
        for seed, row in enumerate(rows):
            print(f"{metric}, seed {seed}: " + ", ".join(f"{name} {row[name][metric]['value']:.4f}" for name in row))
        found[metric] = {control: ahead(rows, metric, control) for control in ("no teacher", "random")}
        for control, gap in found[metric].items():
            print(
                f"{metric}: distilled ahead of {control} by {gap['mean']:.4f} ± {gap['half_width']:.4f} over {len(rows)} seeds"
            )
    if args.json:
        args.json.write_text(json.dumps({"recipe": args.recipe, "rows": rows, "ahead": found}, indent=1))


def ahead(rows: list[dict[str, Any]], metric: str, control: str) -> dict[str, float]:
    """The mean lead of the distilled student over a control and half its 95% interval."""
    sign = 1 if rows[0]["distilled"][metric]["better"] == "higher" else -1
    gaps = [sign * (row["distilled"][metric]["value"] - row[control][metric]["value"]) for row in rows]
    return {"mean": statistics.mean(gaps), "half_width": T_95[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5}


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
    alone["stage"][last] = {
        "use": "train",
        **{key: value for key, value in alone["stage"][last].items() if key in kept},
    }
    alone["evaluate"]["control"] = False
    return {"distilled": distilled, "no teacher": alone}


def measure(recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run both; the metrics of the distilled student, the student without teacher, and the random control."""
    found: dict[str, dict[str, Any]] = {}
    for name, data in recipes.items():
        with tempfile.TemporaryDirectory() as folder, Terminal() as progress:
            results = run(Recipe.parse(data), out=Path(folder) / "run", progress=progress).results
        found[name] = results["stages"][-1]["metrics"]
        if results["control"]:
            found["random"] = results["control"]["metrics"]
    return found


if __name__ == "__main__":
    main()
