"""Start-up in fresh processes, interleaved: `zoo` against `import torch`, and with 0, 20 and 200 plugins beside the `llm` tool with as many.

python benchmarks/startup.py [--repeats 7] [--llm VENV] [--json FILE]

A plugin here is what pip leaves behind, a package and its metadata: for zoo with a registry.toml that declares a model, a
compressor and a command; for llm with hooks that register a model and a command. Both are found on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COUNTS = (0, 20, 200)
TORCH = 'python -c "import torch"'
PLAIN = {"python -c pass": "pass", TORCH: "import torch"}
ZOO = ("--help", "list", "plugins", "info tiny-code")
LLM = ("--help", "models", "plugins")
MAKE_LLM = "python -m venv VENV && VENV/bin/pip install llm"

# Runs a tool's main function, then writes how many modules it took to stderr.
COUNTED = {
    "zoo": "import sys, atexit; atexit.register(lambda: print(len(sys.modules), file=sys.stderr)); import zoo.cli; sys.exit(zoo.cli.main())",
    "llm": "import sys, atexit; atexit.register(lambda: print(len(sys.modules), file=sys.stderr)); import llm.cli; llm.cli.cli()",
}

REGISTRY = """\
api = ">=1,<2"

[[model]]
name = "dummy-model-{i}"
family = "llama"
modality = "text"
task = "causal-lm"
license = "MIT"
params = 1000000
summary = "A model that is only declared"

[[compressor]]
name = "dummy-stage-{i}"
summary = "A compressor that is only declared"

[[command]]
name = "dummy-command-{i}"
summary = "A command that is only declared"
"""

ZOO_MODULE = """\
from zoo.hooks import hookimpl

@hookimpl
def register_compressors(register):
    register("dummy-stage-{i}", "zoo_dummy_{i}.made:Stage")

@hookimpl
def register_commands(register):
    register("dummy-command-{i}", "zoo_dummy_{i}.made:command")
"""

LLM_MODULE = """\
import llm

class Dummy(llm.Model):
    model_id = "dummy-model-{i}"

    def execute(self, prompt, stream, response, conversation):
        yield "nothing"

@llm.hookimpl
def register_models(register):
    register(Dummy())

@llm.hookimpl
def register_commands(cli):
    @cli.command(name="dummy-command-{i}")
    def command():
        "A command that does nothing"
"""


Run = tuple[str, int]  # what is run, and with how many plugins


@dataclass
class Cost:
    """What one run took: seconds on the clock, and of the processor, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--llm", type=Path, metavar="VENV", help=f"an environment with llm: {MAKE_LLM}")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tools = {"zoo": Path(sys.executable)} | ({"llm": args.llm / "bin" / "python"} if args.llm else {})
        runs = {(name, 0): ([sys.executable, "-c", code], dict(os.environ)) for name, code in PLAIN.items()}
        for tool, python in tools.items():
            for count in COUNTS:
                env = environment(tool, count, Path(folder))
                for command in ZOO if tool == "zoo" else LLM:
                    runs[f"{tool} {command}", count] = [str(python), "-m", tool, *command.split()], env
        modules = {key: count_modules(command, env) for key, (command, env) in runs.items() if command[1] == "-m"}
        costs = measure(runs, repeats=args.repeats)
    show("seconds", {key: cost.wall for key, cost in costs.items()}, digits=3)
    show("CPU seconds", {key: cost.cpu for key, cost in costs.items()}, digits=3)
    show("modules", modules)
    if not args.llm:
        print(f"\nllm is left out; for the comparison: {MAKE_LLM}, then --llm VENV")
    if args.json:
        found = [
            {
                "command": name,
                "plugins": count,
                "seconds": cost.wall,
                "cpu_seconds": cost.cpu,
                "modules": modules.get((name, count)),
            }
            for (name, count), cost in costs.items()
        ]
        ratio = costs["zoo list", 0].wall / costs[TORCH, 0].wall
        args.json.write_text(json.dumps({"runs": found, "zoo list / import torch": ratio}, indent=1))


def environment(tool: str, count: int, folder: Path) -> dict[str, str]:
    """Install so many plugins for a tool into a folder of their own, and return the variables of a process that finds them."""
    site = folder / f"{tool}-{count}"
    for i in range(count):
        package = site / f"{tool}_dummy_{i}"
        package.mkdir(parents=True)
        if tool == "zoo":
            (package / "__init__.py").touch()
            (package / "plugin.py").write_text(ZOO_MODULE.format(i=i))
            (package / "registry.toml").write_text(REGISTRY.format(i=i))
            entries = f"[zoo.catalog]\nzoo-dummy-{i} = {package.name}\n\n[zoo]\nzoo-dummy-{i} = {package.name}.plugin\n"
        else:
            (package / "__init__.py").write_text(LLM_MODULE.format(i=i))
            entries = f"[llm]\nllm-dummy-{i} = {package.name}\n"
        metadata = site / f"{package.name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {tool}-dummy-{i}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entries)
        (metadata / "RECORD").write_text(
            "".join(f"{path.relative_to(site)},,\n" for path in site.rglob(f"{package.name}*/*"))
        )
    mine = {"ZOO_CONFIG_DIR": str(folder / "config"), "LLM_USER_PATH": str(folder / "llm"), "PYTHONPATH": str(site)}
    return {key: value for key, value in os.environ.items() if not key.startswith("ZOO_")} | mine


def count_modules(command: list[str], env: dict[str, str]) -> int:
    """Run a command of a tool once, and count the modules imported when it ends."""
    python, _, tool, *args = command
    done = subprocess.run([python, "-c", COUNTED[tool], *args], env=env, check=True, capture_output=True, text=True)
    return int(done.stderr.split()[-1])


def measure(runs: dict[Run, tuple[list[str], dict[str, str]]], *, repeats: int) -> dict[Run, Cost]:
    """Return the median cost of each run; the repeats are interleaved, and the first, which warms the disk cache, is dropped."""
    costs: dict[Run, list[Cost]] = {key: [] for key in runs}
    for _ in range(repeats + 1):
        for key, (command, env) in runs.items():
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, env=env, check=True, capture_output=True)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            costs[key].append(Cost(wall, cpu))
    return {
        key: Cost(*(statistics.median(values) for values in zip(*((c.wall, c.cpu) for c in found[1:]), strict=True)))
        for key, found in costs.items()
    }


def show(what: str, found: dict[Run, float], *, digits: int = 0) -> None:
    """Print a row for each command: the figure with no, some and many plugins, how it grows, and its share of `import torch`."""
    few, many = COUNTS[0], COUNTS[-1]
    torch = found.get((TORCH, 0))
    print(
        f"\n{what + ' with plugins:':26}"
        + "".join(f"{count:>9}" for count in COUNTS)
        + f"{f'{many} / {few}':>10}"
        + " of import torch" * bool(torch)
    )
    for name in dict.fromkeys(name for name, _ in found):
        figures = [found.get((name, count)) for count in COUNTS]
        row = "".join(" " * 9 if figure is None else f"{figure:9.{digits}f}" for figure in figures)
        row += f"{figures[-1] / figures[0]:10.2f}" if figures[0] and figures[-1] else " " * 10
        row += f"{figures[0] / torch:16.3f}" if figures[0] and torch else ""
        print(f"{name:26}{row}".rstrip())


if __name__ == "__main__":
    main()
