"""SIGKILL at random moments over the three quickstarts: every rerun completes, redoes only what was unfinished, and ends
with the same bytes as a run left alone.

    python tests/stress/kills.py [--kills 20] [--recipes quickstart,quickstart-vlm] [--signal TERM] [--seed N] [--json FILE]

The whole process group is killed. With another signal it must end within seconds, with a sentence and nothing half-written,
or as a Python that was just starting. Moments are spread over planning (also of fresh processes, while they import),
calibration, training, saving, measuring and reporting; what was really hit is read from the disk and printed.
The same bytes: every file of the output, stages included, but for report.html, and in results.json and the logs of
stages the figures of time, speed and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from zygote import Done, Zygote

EXAMPLES = Path(__file__).parents[2] / "examples"
OFTEN = "import zoo_compress.train.checkpoint\nzoo_compress.train.checkpoint.CHECKPOINT_SECONDS = 0.1\n"
ENDINGS = ("same command goes on from there.", "before the work was done.")  # with something to go on from, and without
TIMING = {
    "seconds",
    "started",
    "sessions",
    "times",
    "command",
    "peak_bytes",
    "speed",
    "peak_rss_bytes",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "images_per_s",
}
SPEED = "evaluate.speed={prefill = 4, decode = 2, repeats = 1}"
QUIET = "evaluate.speed=false"

# What each kill of twenty aims at. Where it says "fresh", the process is not forked but started, and imports.
AIMS = (
    "fresh planning",
    "fresh planning",
    "fresh training",
    "planning",
    "calibration",
    "calibration",
    "training",
    "training",
    "control",
    "checkpoint",
    "checkpoint",
    "saving",
    "saving",
    "saving",
    "log",
    "measuring",
    "speed",
    "reporting",
    "reporting",
    "exchange",
)

# name of the recipe -> what makes it run in seconds; text and vision also calibrate
RECIPES = {
    "quickstart": [
        "data.train=stdlib:train[:8]",
        "data.test=stdlib:test[:2]",
        "stage.1.layers=influence:3",
        "stage.1.samples=64",
        "stage.1.length=64",
        "stage.3.steps=30",
        "stage.3.batch=2",
        "stage.3.length=32",
        'evaluate={tasks = ["perplexity"], baselines = ["xz"], prompts = ["def"], control = true, perplexity = {max_tokens = 64}}',
    ],
    "quickstart-vlm": [
        "data.train=reading:train[:32]",
        "data.calibration=reading:train[:32]",
        "data.test=reading:test[:4]",
        "stage.1.layers=influence:3",
        "stage.4.steps=20",
        "stage.4.batch=4",
    ],
    "quickstart-t2i": [
        "data.train=digits-captions:train[:64]",
        "data.test=digits-captions:test[:32]",
        "stage.3.steps=20",
        "stage.3.batch=4",
        'evaluate={tasks = ["velocity-error"], prompts = [], control = true, velocity-error = {draws = 1}}',
    ],
}


@dataclass
class Case:
    """A recipe, and how long its parts take when it is left alone."""

    recipe: Path
    settings: list[str]
    place: Path
    # files of an undisturbed run, by its speed setting
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: list[tuple[float, str]] = field(default_factory=list)  # when each line of its progress came

    def args(self, out: str, speed: str = QUIET) -> list[str]:
        return [
            "compress",
            str(self.recipe),
            "--out",
            out,
            *(word for one in (*self.settings, speed) for word in ("--set", one)),
        ]

    def span(self, mark: str) -> float:
        """How long what `mark` begins takes, in seconds; "" begins with the process."""
        starts = [i for i, (_, line) in enumerate(self.seen) if mark in line]
        if not mark:
            return self.seen[0][0]
        if not starts:
            return 0.2
        begun = self.seen[starts[0]][0]
        return max(0.02, (self.seen[starts[0] + 1][0] if starts[0] + 1 < len(self.seen) else begun + 0.5) - begun)


@dataclass
class Kill:
    """One kill and the rerun after it."""

    recipe: str
    aim: str
    hit: str
    stages: int = 0  # that were finished, and not run again
    step: int = 0  # from which training went on
    ending: float = 0.0  # seconds from the signal to the end
    again: float = 0.0  # seconds of the rerun
    wrong: list[str] = field(default_factory=list)


# --- the state on disk ------------------------------------------------------------------------------------------------


def drafts(out: Path) -> list[Path]:
    """What is half-written, anywhere in a run's output."""
    return [path for path in out.rglob(".*") if path.name.count(".") >= 2] if out.is_dir() else []


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The stages that are complete, each as the directory it is."""
    found = {}
    for folder in sorted(out.glob("stages/[!.]*/")):
        if (folder / "zoo.json").exists() and folder.with_name(f"{folder.name}.json").exists():
            about = (folder / "zoo.json").stat()
            found[folder.name] = (about.st_ino, about.st_mtime_ns)
    return found


def measured(out: Path) -> list[str]:
    """The names of models whose quality was measured."""
    return [log.stem for log in out.glob("stages/[!.]*.json") if "asked" in json.loads(log.read_text())]


def checkpoints(out: Path) -> dict[str, int]:
    """The step of the last checkpoint, by stage."""
    from safetensors import safe_open

    found = {}
    for file in out.glob("work/*/training.safetensors"):
        with safe_open(file, framework="pt") as checkpoint:
            found[file.parent.name] = int(checkpoint.metadata()["step"])
    return found


def content(out: Path) -> dict[str, Any]:
    """Every file of a run's output that must be the same each time, figures of time and memory left out."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out).as_posix()
        timed = name in ("results.json", "run.json") or (name.startswith("stages/") and name.count("/") == 1)
        if name != "report.html":
            found[name] = untimed(json.loads(file.read_text())) if timed else file.read_bytes()
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key not in TIMING and not key.startswith("speed_")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def hit(out: Path, lines: list[str]) -> str:
    """What a process was doing when it was killed: what lies half-written says more than its last line."""
    for draft in drafts(out):
        if draft.parent.name == "stages":
            return "saving: log" if ".json." in draft.name else "saving: stage"
        if draft.parent.parent.name == "work":
            return "saving: checkpoint"
        if draft.name.startswith(".result."):
            missing = not (draft / "zoo.json").exists() and (draft / "results.json").exists()
            moved = any(out.glob("*.safetensors")) or (out / "README.md").exists()
            return "reporting: exchange" if missing or moved else "reporting: drafts"
        if draft.name.startswith(".run.json."):
            return "saving: marker"
    said = [line for line in lines if ":" in line and not line.startswith((" ", "Plan of"))]
    last = said[-1] if said else ""
    if (out / "zoo.json").exists():
        return "reporting: cleaning up"
    if not last:
        return "planning" if (out / "run.json").exists() else "planning: nothing written"
    if "measuring speed" in last:
        return "measuring: speed" if len(list(out.glob("stages/*.json"))) else last
    if "measuring" in last:
        return "measuring: quality"
    if "(inherit): running" in last:
        return "calibration"
    if "control" in last or "(distill): running" in last or "going on" in last:
        return "training"
    return "stage without data" if "running" in last else last


# --- processes --------------------------------------------------------------------------------------------------------


class Fresh:
    """A process that is not forked: it starts, imports, and runs `zoo ARGS`."""

    def __init__(self, args: list[str], *, cwd: Path, env: dict[str, str]) -> None:
        self.err = cwd / "fresh-err"
        code = f"{OFTEN}import sys, zoo.cli\nsys.exit(zoo.cli.main({args!r}))"
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=cwd,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env,
            )
        self.pid = self.process.pid

    def kill(self, number: int, *, group: bool = False) -> None:
        os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def wait(self) -> Done:
        return Done(self.process.wait(), "", self.err.read_text())


def alive(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until(condition: Callable[[], Any], process: Any, *, limit: float = 600) -> bool:
    """Wait for a condition as closely as one can; False where the process ended before."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for _ in range(25):
            if condition():
                return True
            time.sleep(0.002)
        if over(process.pid):
            return False
    raise TimeoutError(f"waited {limit:.0f} s")


def over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def lines(process: Any) -> list[str]:
    return process.err.read_text(errors="replace").splitlines() if process.err.exists() else []


def aim(kind: str, case: Case, process: Any, out: Path, draw: random.Random, *, share: float) -> None:
    """Wait for the moment a kill of this kind is aimed at: up to that share of what the undisturbed run took there."""

    def after(mark: str, *, count: int = 1) -> None:
        until(lambda: sum(mark in line for line in lines(process)) >= count, process)
        time.sleep(draw.random() * case.span(mark) * share)

    def when(pattern: str, *, delay: float, count: int = 1) -> None:
        seen: set[str] = set()

        def there() -> bool:
            seen.update(str(path) for path in out.glob(pattern))
            return len(seen) >= count

        until(there, process)
        time.sleep(draw.random() * delay)

    stages = len([line for _, line in case.seen if ": running" in line])
    if kind == "planning":
        time.sleep(draw.random() * case.span("") * share)
    elif kind == "calibration":
        after("stage 1 (inherit): running")
    elif kind == "training":
        after("(distill): running")
    elif kind == "control":
        after("control:")
    elif kind == "checkpoint":
        when("work/*/.training*", delay=0.004, count=draw.randint(1, 6))
    elif kind == "saving":
        when("stages/.*", delay=0.05, count=2 * draw.randint(1, stages + 1))
    elif kind == "log":
        when("stages/.*.json.*", delay=0, count=draw.randint(1, stages))
    elif kind == "measuring":
        after(": measuring ", count=draw.randint(1, stages))
    elif kind == "speed":
        after("measuring speed")
    elif kind == "reporting":
        when(".result.*", delay=0.05)
    elif kind == "exchange":
        when("README.md", delay=0.004)


# --- one case ---------------------------------------------------------------------------------------------------------


def undisturbed(case: Case, zygote: Zygote, *, speeds: tuple[str, ...] = (SPEED, QUIET)) -> None:
    """Run a recipe and leave it alone: what it ends with, and how long its parts take."""
    begun = time.monotonic()
    process = zygote.start(*case.args("alone", speeds[0]), cwd=case.place, setup=OFTEN)
    while not over(process.pid):
        for line in lines(process)[len(case.seen) :]:
            case.seen.append((time.monotonic() - begun, line))
        time.sleep(0.005)
    process.wait()
    for speed in speeds:
        done = zygote.run(*case.args("alone", speed), cwd=case.place, setup=OFTEN)
        assert done.code == 0, process.done.err + done.err
        case.expected[speed] = content(case.place / "alone")
    shutil.rmtree(case.place / "alone")


def kill(
    case: Case, kind: str, zygote: Zygote, draw: random.Random, *, number: int = signal.SIGKILL, share: float = 0.7
) -> Kill | None:
    """Start, kill, rerun, compare; None where the run was over before the kill."""
    out, scratch = case.place / "out", case.place / "tmp"
    for folder in (out, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir()
    name, speed = kind.removeprefix("fresh "), SPEED if kind in ("speed", "reporting") else QUIET
    args, env = case.args("out", speed), {"TMPDIR": str(scratch)}
    process: Any = (
        Fresh(args, cwd=case.place, env=env)
        if kind.startswith("fresh")
        else zygote.start(*args, cwd=case.place, setup=OFTEN, env=env)
    )
    aim(name, case, process, out, draw, share=share)
    begun = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        process.kill(number, group=number != signal.SIGTERM)
    done = process.wait()
    if done.code == 0:
        return None
    said = [line for line in done.err.splitlines() if not line.startswith("error: ")]
    found = Kill(case.recipe.stem, kind, hit(out, said), ending=time.monotonic() - begun)
    if number == signal.SIGKILL:
        assert done.code == -number, done.err
    else:
        found.wrong += unclean(done, number, found.ending, drafts(out))
    if kind == "fresh planning" and found.hit.startswith("planning"):
        found.hit = "importing or planning"
    rerun(case, found, args, zygote, expected=case.expected[speed], env=env)
    found.wrong += [f"process {pid} is left" for pid in alive(process.pid)]
    # torch's cache, made on import
    scraps = [place for place in scratch.iterdir() if not place.name.startswith("torchinductor_")]
    found.wrong += [f"{place} is left" for place in (*drafts(out), *scraps, *out.glob("work"))]
    return found


def unclean(done: Done, number: int, ending: float, left: list[Path]) -> list[str]:
    """What is wrong with how a signal other than SIGKILL ended a run."""
    last = done.err.splitlines()[-1] if done.err else ""
    wrong = [] if ending < 15 else [f"it took {ending:.0f} s to end"]
    if done.code == -number and not done.out and (not last or "KeyboardInterrupt" in done.err):
        return wrong  # a Python that was starting, or making the imports above, before zoo's own main
    if done.code != 128 + number or not last.endswith(ENDINGS) or "Traceback" in done.err or left:
        wrong.append(f"it ended with {done.code}, left {left}, and said: {done.err[-600:]}")
    return wrong


def rerun(
    case: Case, found: Kill, args: list[str], zygote: Zygote, *, expected: dict[str, Any], env: dict[str, str]
) -> None:
    """Run again, and note in `found` what is not as it should be."""
    out = case.place / "out"
    before, quality, steps = finished(out), measured(out), checkpoints(out)
    begun = time.monotonic()
    done = zygote.run(*args, cwd=case.place, setup=OFTEN, env=env)
    found.again, found.stages = time.monotonic() - begun, len(before)
    if done.code:
        found.wrong.append(f"the rerun ended with {done.code}: {done.err}")
        return
    after, said = finished(out), done.err.splitlines()
    for name, about in before.items():
        number = name[:2].lstrip("0")
        if after.get(name) != about or any(
            line.startswith(f"stage {number} (") and line.endswith("running") for line in said
        ):
            found.wrong.append(f"{name} was finished, and run again")
    found.wrong += [
        f"{name} was measured again" for name in quality if any(line.startswith(f"{name}: measuring") for line in said)
    ]
    for name, step in steps.items():
        if name not in before:
            found.step = step
            if f"going on from step {step}" not in said:
                found.wrong.append(f"training did not go on from step {step}: {said}")
    ended = content(out)
    found.wrong += [
        f"{name} differs" for name in sorted(ended.keys() | expected.keys()) if ended.get(name) != expected.get(name)
    ]


def kills(
    case: Case,
    zygote: Zygote,
    *,
    count: int,
    seed: int,
    aims: tuple[str, ...] = AIMS,
    signals: Sequence[int] = (signal.SIGKILL,),
) -> Iterator[Kill]:
    """Kill a recipe's run `count` times, each time a new one."""
    draw = random.Random(f"{seed} {case.recipe.stem}")
    for number in range(count):
        kind = aims[number % len(aims)]
        for share in (0.7, 0.4, 0.2, 0.1, 0.05):  # this run may be faster than the undisturbed one was
            found = kill(case, kind, zygote, draw, number=signals[number % len(signals)], share=share)
            if found is not None:
                yield found
                break
        else:
            raise AssertionError(f"{case.recipe.stem}: five times over before the kill aimed at {kind}")


# --- the script -------------------------------------------------------------------------------------------------------


def attack(name: str, folder: Path, *, count: int, seed: int, signals: Sequence[int]) -> list[Kill]:
    """Everything about one recipe."""
    place = folder / name
    place.mkdir()
    case = Case(EXAMPLES / f"{name}.toml", RECIPES[name], place)
    found = []
    with Zygote("diffusers", "zoo_h2ovl.family", "zoo_snapgen.family") as zygote:
        undisturbed(case, zygote)
        print(f"{name}: left alone {case.seen[-1][0]:.0f} s, {len(case.expected[QUIET])} files compared", flush=True)
        calibrates = any("(inherit): running" in line for _, line in case.seen)
        aims = tuple(kind for kind in AIMS if calibrates or kind != "calibration")
        for one in kills(case, zygote, count=count, seed=seed, aims=aims, signals=signals):
            found.append(one)
            print(
                f"  {name:14} {one.aim:14} hit {one.hit:26} {one.stages} stages kept, step {one.step:2}, ended in {one.ending:3.1f} s, rerun {one.again:4.1f} s"
                + (f"  WRONG: {'; '.join(one.wrong)}" if one.wrong else ""),
                flush=True,
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each recipe")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--jobs", type=int, default=2, help="recipes at the same time")
    parser.add_argument("--signal", default="KILL", help="KILL, or of INT,TERM,HUP one or several in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for ignored in (signal.SIGINT, signal.SIGHUP):  # as nohup and a shell's background jobs leave them
        signal.signal(ignored, signal.SIG_DFL)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zoo-kills-") as folder, ThreadPoolExecutor(asked.jobs) as pool:
        signals = [signal.Signals[f"SIG{name}"] for name in asked.signal.split(",")]
        work = partial(attack, folder=Path(folder), count=asked.kills, seed=asked.seed, signals=signals)
        found = [one for some in pool.map(work, reversed(asked.recipes.split(","))) for one in some]
    wrong = [one for one in found if one.wrong]
    print("\nhit by a kill:")
    for what, times in sorted(Counter(one.hit for one in found).items()):
        print(f"  {times:3} {what}")
    kept, steps = sum(one.stages for one in found), sum(one.step > 0 for one in found)
    print(
        f"{len(found)} kills, {len(found) - len(wrong)} reruns right, {len(wrong)} wrong; {kept} finished stages kept, "
        f"training went on {steps} times, the slowest end took {max(one.ending for one in found):.1f} s; {time.monotonic() - begun:.0f} s"
    )
    if asked.json:
        asked.json.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
