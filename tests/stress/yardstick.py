"""What the three quickstarts make, file by file, so that a change that should change nothing can be shown to.

    python tests/stress/yardstick.py > before.json                # the sha256 of every file of every artifact
    python tests/stress/yardstick.py --against before.json        # make them again and compare; exit code 1 where one differs

Hashes hold on one machine: they follow from the processor, the number of threads and the versions, which are written
along. Half an hour on two cores; `--steps 20` trains every stage that long only, measures nothing, and takes a few
minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import torch

from zoo.model.provenance import circumstances

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = ("quickstart", "quickstart-vlm", "quickstart-t2i")


def made(recipe: str, folder: Path, steps: int | None) -> dict[str, str]:
    """Run a recipe and hash what it leaves: the result, and the artifact of every stage."""
    source, out = EXAMPLES / f"{recipe}.toml", folder / recipe
    stages = tomllib.loads(source.read_text(encoding="utf-8"))["stage"]
    shorter = [f"stage.{i}.steps={steps}" for i, stage in enumerate(stages) if "steps" in stage]
    shorter += ["evaluate={tasks = [], control = false, speed = false}"]
    command = [sys.executable, "-m", "zoo", "compress", str(source), "--out", str(out)]
    command += [argument for override in shorter if steps for argument in ("--set", override)]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder)
    hashes = {}
    for manifest in sorted(out.rglob("zoo.json")):
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for file in ("zoo.json", *listed):
            path = manifest.parent / file
            hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every file, version or circumstance that is not as it was."""
    return [
        f"{part}: {key}: {before[part].get(key, 'absent')} before, {now[part].get(key, 'absent')} now"
        for part in ("with", "files")
        for key in sorted(before[part].keys() | now[part].keys())
        if before[part].get(key) != now[part].get(key)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FILE", help="what this script printed before")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="train every stage that trains for N steps, and measure nothing"
    )
    parser.add_argument(
        "recipes", nargs="*", default=RECIPES, metavar="RECIPE", help=f"of {', '.join(RECIPES)}; default: all"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, str] = {}
        for recipe in asked.recipes:
            files |= made(recipe, Path(folder), asked.steps)
    now = {"with": {**circumstances("cpu"), "threads": str(torch.get_num_threads())}, "files": files}
    if asked.against is None:
        print(json.dumps(now, indent=1))
        return 0
    found = differences(json.loads(asked.against.read_text(encoding="utf-8")), now)
    print("\n".join(found) or f"{len(files)} files are as they were")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
