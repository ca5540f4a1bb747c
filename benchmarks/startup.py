"""Start-up: `zoo list` and `zoo --help` against `python -c "import torch"`, interleaved, in fresh processes.

python benchmarks/startup.py [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    'python -c "import torch"': [sys.executable, "-c", "import torch"],
    "zoo --help": [sys.executable, "-m", "zoo", "--help"],
    "zoo list": [sys.executable, "-m", "zoo", "list"],
    "zoo info tiny-code": [sys.executable, "-m", "zoo", "info", "tiny-code"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.repeats + 1):  # the first round warms the disk cache and is dropped
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    torch = medians['python -c "import torch"']
    print(f"{'command':28} {'seconds':>8} {'of import torch':>16}")
    for name, median in medians.items():
        print(f"{name:28} {median:8.3f} {median / torch:16.3f}")
    if args.json:
        args.json.write_text(json.dumps({"seconds": medians, "zoo list / import torch": medians["zoo list"] / torch}, indent=1))


if __name__ == "__main__":
    main()
