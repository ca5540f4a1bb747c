"""Does inheriting and distilling pay? The quickstart's first three stages against its control, over several seeds.

python benchmarks/control.py [--seeds 3] [--steps 100] [--json FILE]

Control: the same architecture from random weights, trained on the same windows for the same steps without a teacher.
Prints held-out bits per byte of both for every seed, and the mean difference with a 95% interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from zoo_compress import Recipe, run
from zoo_compress.progress import Terminal

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.toml"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        overrides = [f"recipe.seed={seed}", f"stage.2.steps={args.steps}", "evaluate.speed=false", "evaluate.baselines=[]"]
        with tempfile.TemporaryDirectory() as folder, Terminal() as progress:
            recipe = Recipe.load(QUICKSTART, overrides=overrides)
            results = run(recipe, out=Path(folder) / "run", until=3, progress=progress).results
        distilled, control = (row["metrics"]["bits_per_byte"]["value"] for row in (results["stages"][3], results["control"]))
        rows.append({"seed": seed, "distilled": distilled, "control": control})
        print(f"seed {seed}: inherited + distilled {distilled:.4f} bit/B, from random weights {control:.4f}, ratio {distilled / control:.3f}")
    gaps = [row["control"] - row["distilled"] for row in rows]
    half = T_95[args.seeds] * statistics.stdev(gaps) / len(gaps) ** 0.5
    print(f"difference {statistics.mean(gaps):.4f} ± {half:.4f} bit/B over {len(gaps)} seeds")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "mean": statistics.mean(gaps), "half_width": half}, indent=1))


if __name__ == "__main__":
    main()
