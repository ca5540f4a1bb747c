"""Several processes at once: runs into one directory, saves to one place, reads while a result is replaced, one hub cache.

    python tests/stress/together.py [--rounds 20] [--seed N] [--json FILE]

- runs: three runs of a recipe into one directory, started together: one goes through, the others say who is there; after a
  kill the next one takes over at once.
- readers: a result is replaced again and again while others load it: they get one of the two, whole, or one sentence.
- saves: four processes save different models to one place: with `force` all succeed and one of them is there in the end,
  without it one succeeds and the others say that a model is there.
- downloads: four processes fill an empty hub cache, one of them killed in the middle: every other has all files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import content, drafts
from tiny import workplace
from zygote import Process, Zygote

import zoo
from zoo.artifact import store
from zoo.errors import ZooError
from zoo.system.writing import sha256_of

HELD = re.compile(
    r"error: Another run is writing into \S+( \(process (\d+) on (\S+), since \S+\))?; wait for it, or choose another --out\."
)
THERE = re.compile(
    r"\S+ (already holds a model|is not empty and holds no zoo model); choose another directory, or pass force=True to replace it\."
)

# Save a model of its own at the agreed time; what becomes of it is said on stdout.
SAVE = """
import os, time, torch, zoo
model = zoo.load({model!r})
torch.manual_seed({seed})
with torch.no_grad():
    for parameter in model.module.parameters():
        parameter.copy_(torch.randn_like(parameter))
model.round()
time.sleep(max(0, {at} - time.time()))
for _ in range({times}):
    try:
        model.save({path!r}, force={force})
        print("saved", flush=True)
    except zoo.ZooError as error:
        print(error, flush=True)
os._exit(0)
"""


@dataclass
class Report:
    """What was tried, and what was not as it should be."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, right: object, what: str) -> None:
        if not right:
            self.wrong.append(what)


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def runs(zygote: Zygote, place: Path, report: Report, *, rounds: int, draw: random.Random) -> None:
    """Start three runs into one directory at about the same time."""
    done = zygote.run("compress", "recipe.toml", "--out", "alone", cwd=place)
    assert done.code == 0, done.err
    expected, out = content(place / "alone"), place / "out"
    for number in range(rounds):
        if number % 2 == 0:  # otherwise into what the last round left, up to its last stage
            shutil.rmtree(out, ignore_errors=True)
        else:
            shutil.rmtree(next(out.glob("stages/04-*/")))
        started: list[Process] = []
        for _ in range(3):
            time.sleep(draw.random() * draw.choice((0, 0.02, 0.3)))
            started.append(zygote.start("compress", "recipe.toml", "--out", "out", cwd=place))
        ended = [process.wait() for process in started]
        pids = {process.pid for process in started}
        for process in started:
            said = HELD.fullmatch(process.done.err.splitlines()[-1]) if process.done.code else None
            report.check(
                process.done.code == 0 or (process.done.code == 2 and said),
                f"round {number}: {process.done.code} {process.done.err[-400:]}",
            )
            if said and said[2]:
                report.check(
                    int(said[2]) in pids - {process.pid} and said[3] == socket.gethostname(),
                    f"round {number}: blames {said[2]}",
                )
            report.tried[
                "runs: went through"
                if process.done.code == 0
                else f"runs: told {'who is' if said and said[2] else 'that another is'} there"
            ] += 1
        report.check(any(one.code == 0 for one in ended), f"round {number}: none went through")
        report.check(
            not differing(content(out), expected) and not drafts(out),
            f"round {number}: {differing(content(out), expected)} {drafts(out)}",
        )


def takeovers(zygote: Zygote, place: Path, report: Report, *, rounds: int, draw: random.Random) -> None:
    """Kill a run, and start the next before the first is even buried."""
    expected, out = content(place / "alone"), place / "out"
    for number in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        first = zygote.start("compress", "recipe.toml", "--out", "out", cwd=place)
        while not out.is_dir():
            time.sleep(0.01)
        time.sleep(draw.random())
        first.kill(signal.SIGKILL)
        done = zygote.run("compress", "recipe.toml", "--out", "out", cwd=place)
        first.wait()
        report.check(
            done.code == 0 and not differing(content(out), expected),
            f"after a kill, {number}: {done.code} {done.err[-400:]}",
        )
        report.tried["runs: took over from a killed one"] += 1


def readers(zygote: Zygote, place: Path, report: Report, *, rounds: int) -> None:
    """Replace a result by another and back while two threads load it all the time."""
    out = place / "out"
    known: set[str] = set()
    for args in (("--until", "1"), ()):
        assert zygote.run("compress", "recipe.toml", "--out", "out", *args, cwd=place).code == 0
        known.add(sha256_of(out / "model.safetensors"))
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                model = zoo.load(out)
            except ZooError:
                report.tried["readers: one sentence"] += 1
                continue
            except Exception as error:
                report.check(False, f"a reader met {type(error).__name__}: {error}")
                continue
            with tempfile.TemporaryDirectory() as scratch:
                model.save(Path(scratch) / "model")
                report.check(
                    sha256_of(Path(scratch) / "model" / "model.safetensors") in known, "a reader got a mixed model"
                )
            report.tried["readers: a whole model"] += 1

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        done = zygote.run(
            "compress", "recipe.toml", "--out", "out", *(("--until", "1") if number % 2 == 0 else ()), cwd=place
        )
        report.check(done.code == 0, f"replacing a result: {done.err[-400:]}")
    ended.set()
    for thread in threads:
        thread.join()


def saves(zygote: Zygote, place: Path, report: Report, *, rounds: int) -> None:
    """Save four models to one place at the same time."""
    whole: set[str] = set()
    for seed in range(4):
        code = SAVE.format(
            model=str(place / "model"), seed=seed, at=0, times=1, path=str(place / f"one-{seed}"), force=False
        )
        assert zygote.run(cwd=place, setup=code).out == "saved\n"
        whole.add(sha256_of(place / f"one-{seed}" / "model.safetensors"))
    for number in range(rounds):
        force = number % 2 == 1
        target = place / "saved" / "model"
        shutil.rmtree(target.parent, ignore_errors=True)
        at, times = time.time() + 1.0, 10 if force else 1
        code = [
            SAVE.format(model=str(place / "model"), seed=seed, at=at, times=times, path=str(target), force=force)
            for seed in range(4)
        ]
        started = [zygote.start(cwd=place, setup=one) for one in code]
        said = [line for process in started for line in (process.wait().out + process.done.err).splitlines()]
        saved = said.count("saved")
        others = [line for line in said if line != "saved"]
        right = saved == len(said) if force else saved == 1 and all(THERE.fullmatch(line) for line in others)
        report.check(right, f"{'forced' if force else 'plain'} saves, round {number}: {saved} saved, {Counter(others)}")
        report.check(
            not store.verify(target) and sha256_of(target / "model.safetensors") in whole,
            f"saves, round {number}: a mixed artifact",
        )
        report.check(
            list(target.parent.iterdir()) == [target], f"saves, round {number}: left {list(target.parent.iterdir())}"
        )
        report.tried["saves: forced, all succeeded" if force else "saves: one succeeded, the others were told"] += len(
            said
        )


def downloads(report: Report, *, rounds: int, draw: random.Random, kill: bool | None = None) -> None:
    """Fill an empty hub cache from four processes, and kill one of them, by default in two of three rounds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "zoo" / "loading"))
    from hub import COMMIT, serving
    from test_hub import RESOLVE, load, site

    killed = "import os, signal, threading\nthreading.Timer({delay}, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
    with tempfile.TemporaryDirectory() as folder:
        model = workplace(Path(folder) / "far").parent / "model"
        wanted = {file.name for file in model.iterdir()} - {"README.md"}
        for number in range(rounds):
            place = site(Path(folder) / str(number), model)
            with serving(model, delay=0.3) as hub, ThreadPoolExecutor(4) as pool:
                one = killed.format(delay=0.5 + 2 * draw.random()) if kill or (kill is None and number % 3) else ""
                codes = [RESOLVE] * 3 + [one + RESOLVE]
                started = [pool.submit(load, place, hub.address, code=code) for code in codes]
                done = [one.result() for one in started]
                again = load(place, hub.address)
            for ended in (*done, again):
                right = ended.stdout == f"fetched {COMMIT}\n" or ended.returncode == -signal.SIGKILL
                report.check(
                    right and "Traceback" not in ended.stderr,
                    f"downloads, round {number}: {ended.stdout} {ended.stderr[-400:]}",
                )
                report.tried["downloads: killed" if ended.returncode else "downloads: complete"] += 1
            found = {file.name for file in place.glob(f"hf/hub/*/snapshots/{COMMIT}/*")}
            report.check(found == wanted, f"downloads, round {number}: {wanted - found} are missing")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    begun, report, draw = time.monotonic(), Report(), random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="zoo-together-") as folder, Zygote() as zygote:
        place = workplace(Path(folder) / "work").parent
        runs(zygote, place, report, rounds=asked.rounds, draw=draw)
        takeovers(zygote, place, report, rounds=asked.rounds, draw=draw)
        readers(zygote, place, report, rounds=asked.rounds)
        saves(zygote, place, report, rounds=2 * asked.rounds)
        downloads(report, rounds=max(1, asked.rounds // 4), draw=draw)
    for what, times in sorted(report.tried.items()):
        print(f"  {times:4} {what}")
    for what in report.wrong:
        print(f"WRONG: {what}")
    print(f"{sum(report.tried.values())} cases, {len(report.wrong)} wrong, {time.monotonic() - begun:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps({"tried": report.tried, "wrong": report.wrong}, indent=1) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
