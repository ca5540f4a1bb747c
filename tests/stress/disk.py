"""Full disks at every write, read-only outputs, outputs that vanish, full caches: one sentence each, and nothing is damaged.

    python tests/stress/disk.py [--parts saves,runs,outputs,caches] [--seed N] [--json FILE]

On a tmpfs that is as small as it must be, in a mount namespace of its own (user namespaces or root are needed).

- saves: `model.save()` of all three modalities with room for 0, 1, 2, ... pages less than it needs, over an older artifact.
- runs: a recipe whose disk grows from nothing page by page, so that every write fails once and the run goes on after each;
  and runs whose disk fills up at the first, second, ... change of the file system.
- outputs: read-only from the start or from the middle of a run; removed, replaced, unmounted while a run writes.
- caches: TMPDIR and HF_HOME on a full disk; a download into a full hub cache; stdout and stderr on a full disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import checkpoints, content, drafts, finished
from tiny import workplace
from zygote import Done, Zygote

import zoo
from zoo.artifact import store
from zoo.errors import OutputError

PAGE = os.sysconf("SC_PAGE_SIZE")
NAMESPACES = (["unshare", "-m"], ["unshare", "-Urm"])
SENTENCE = re.compile(
    r"error: (\S+) cannot be written: No space left on device \(([\d,]+ bytes needed, )?[\d,]+ free\)\.( What is finished is kept in \S+: the same command goes on from there\.)?"
)

# A checkpoint at every step. When the file system is changed for the KILL-th time, fill it up but for LEFT pages.
FILLING = """
import os, sys
import zoo_compress.train.checkpoint
zoo_compress.train.checkpoint.CHECKPOINT_SECONDS = 0
count = 0
def watch(event, args):
    global count
    writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in ("os.mkdir", "os.rename", "os.remove", "tempfile.mkstemp", "tempfile.mkdtemp")) and {disk!r} in str(args[0]):
        count += 1
        if count == {at}:
            free = os.statvfs({disk!r})
            with os.fdopen(os.open({disk!r} + "/ballast", os.O_WRONLY | os.O_CREAT), "wb") as ballast:
                ballast.write(bytes(max(0, free.f_bavail - {left}) * free.f_frsize))
sys.addaudithook(watch)
"""
OFTEN = "import zoo_compress.train.checkpoint\nzoo_compress.train.checkpoint.CHECKPOINT_SECONDS = 0\n"


@dataclass
class Report:
    """What was tried, and what was not as it should be."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, right: object, what: str) -> None:
        if not right:
            self.wrong.append(what)


class Disk:
    """A tmpfs whose size can be changed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        mount("-t", "tmpfs", "-o", "size=1G", "none", str(place))

    @property
    def free(self) -> int:
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    @property
    def used(self) -> int:
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, size: int) -> None:
        """Let so many bytes be free."""
        mount("-o", f"remount,size={max(PAGE, self.used + size)}", str(self.place))

    def clear(self) -> None:
        self.leave(2**30)
        for path in self.place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


# --- model.save() -----------------------------------------------------------------------------------------------------


def saves(name: str, disk: Disk, report: Report, *, most: int = 200) -> None:
    """Save over an older artifact with less and less too little room."""
    disk.clear()
    model, target = zoo.load(name), disk.place / "model"
    model.save(target)
    size = disk.used
    before = content(target)
    pages = size // PAGE
    every = (
        range(pages)
        if pages <= most
        else sorted({*range(most // 4), *range(pages - most // 2, pages), *range(0, pages, pages // (most // 4))})
    )
    for left in every:
        disk.leave(left * PAGE)
        try:
            model.save(target, force=True)
        except OutputError as error:
            report.check(SENTENCE.fullmatch(f"error: {error}"), f"{name} with {left} pages: {error}")
            report.tried[f"saves: {name}, one sentence"] += 1
        except Exception as error:
            report.check(False, f"{name} with {left} pages: {type(error).__name__}: {error}")
        else:
            report.tried[f"saves: {name}, there was room"] += 1
        report.check(
            content(target) == before and not store.verify(target),
            f"{name} with {left} pages: the older artifact is damaged",
        )
        report.check(
            sorted(disk.place.iterdir()) == [target], f"{name} with {left} pages leaves {list(disk.place.iterdir())}"
        )
    disk.leave(2 * size)
    model.save(target, force=True)
    report.check(content(target) == before, f"{name}: saved again it differs")


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """A recipe whose output is on the disk."""

    zygote: Zygote
    place: Path
    disk: Disk
    report: Report
    expected: dict[str, Any] = field(default_factory=dict)
    hit: Counter[str] = field(default_factory=Counter)

    @property
    def out(self) -> Path:
        return self.disk.place / "out"

    def run(self, setup: str = OFTEN, *args: str) -> Done:
        return self.zygote.run("compress", "recipe.toml", "--out", str(self.out), *args, cwd=self.place, setup=setup)

    def alone(self) -> None:
        self.disk.clear()
        done = self.run()
        assert done.code == 0, done.err
        self.expected = content(self.out)

    def full(self, done: Done, what: str) -> None:
        """Check a run that a full disk ended: a sentence, and whatever is there is sound."""
        last = done.err.splitlines()[-1] if done.err else ""
        said = SENTENCE.fullmatch(last)
        self.report.check(
            done.code == 2 and said and "Traceback" not in done.err, f"{what}: {done.code} {done.err[-600:]}"
        )
        if said:
            self.hit[self._kind(Path(said[1]))] += 1
        self.sound(what)

    def sound(self, what: str) -> None:
        self.report.check(not drafts(self.out), f"{what} leaves {drafts(self.out)}")
        for folder in (self.out, *self.out.glob("stages/[!.]*/")):
            if (folder / "zoo.json").exists():
                self.report.check(not store.verify(folder), f"{what}: {folder} is damaged")
        for log in self.out.glob("stages/*.json"):
            json.loads(log.read_text())
        checkpoints(self.out)  # can be read

    def complete(self, what: str) -> None:
        """There is room again: the run goes on, redoes nothing, and ends as if nothing had been."""
        (self.disk.place / "ballast").unlink(missing_ok=True)
        self.disk.leave(2**30)
        before = finished(self.out)
        done = self.run()
        after = finished(self.out)
        self.report.check(done.code == 0, f"{what}, then with room: {done.code} {done.err[-600:]}")
        self.report.check(
            all(after.get(name) == about for name, about in before.items()), f"{what}: a finished stage was run again"
        )
        ended = content(self.out)
        differing = [name for name in ended.keys() | self.expected.keys() if ended.get(name) != self.expected.get(name)]
        self.report.check(
            not differing and not drafts(self.out), f"{what}, then with room: {differing} differ; {drafts(self.out)}"
        )

    def _kind(self, path: Path) -> str:
        name = re.sub(r"-[0-9a-f]{12}", "", path.relative_to(self.disk.place).as_posix())
        return re.sub(r"\.result\.\w{8}", "result", re.sub(r"\d\d-[\w.]+|control|00-original", "STAGE", name))


def growing(runs: Runs, *, step: int, draw: random.Random) -> None:
    """Give a run no room, then a little more after each failure until it gets further, then none again."""
    runs.disk.clear()
    room = most = 0
    for _ in range(400):
        runs.disk.leave(room * PAGE)
        done = runs.run()
        if done.code == 0:
            break
        runs.full(done, "growing")
        runs.report.tried["runs: a little more room"] += 1
        room = 0 if runs.disk.used > most else room + draw.randint(1, step)
        most = max(most, runs.disk.used)
    runs.complete("growing")


def filling(runs: Runs, *, start: int, stride: int, draw: random.Random) -> None:
    """Fill the disk at a change of the file system, a later one each time, free it, go on."""
    runs.disk.clear()
    at = start
    for _ in range(200):
        done = runs.run(FILLING.format(disk=str(runs.disk.place), at=at, left=draw.choice((0, 0, 1, 2, 4, 8, 16))))
        (runs.disk.place / "ballast").unlink(missing_ok=True)
        if done.code == 0:
            break
        runs.full(done, f"filled up at change {at}")
        runs.report.tried["runs: filled up"] += 1
        at += stride
    runs.complete(f"filled up at every {stride}th change")


def replacing(runs: Runs, draw: random.Random) -> None:
    """Fill the disk while a result takes the place of an older one: that one stays whole, or is gone, or the new one is whole."""
    for left in range(0, 48, 3):
        runs.disk.clear()
        assert runs.run(OFTEN, "--until", "3").code == 0
        first = (runs.out / "zoo.json").read_bytes()
        done = runs.run(FILLING.format(disk=str(runs.disk.place), at=26 + draw.randint(0, 30), left=left))
        if done.code:
            runs.full(done, "an older result")
            now = (runs.out / "zoo.json").read_bytes() if (runs.out / "zoo.json").exists() else b""
            runs.report.tried[
                "runs: the older result is " + ("whole" if now == first else "gone" if not now else "replaced")
            ] += 1
        runs.complete("an older result")


# --- outputs that go away ---------------------------------------------------------------------------------------------


def outputs(runs: Runs) -> None:
    """Outputs that are read-only, removed, replaced or unmounted while a run writes into them."""
    report, disk, out = runs.report, runs.disk, runs.out

    def refused(done: Done, what: str, *words: str) -> None:
        last = done.err.splitlines()[-1] if done.err else ""
        right = (
            done.code == 2
            and last.startswith("error: ")
            and all(word in last for word in words)
            and "Traceback" not in done.err
        )
        report.check(right, f"{what}: {done.code} {done.err[-500:]}")
        report.tried[f"outputs: {what}"] += 1

    disk.clear()
    mount("-o", "remount,ro", str(disk.place))
    refused(runs.run(), "read-only from the start", f"{out} cannot be written: Read-only file system.")
    report.check(not list(disk.place.iterdir()), "read-only from the start: something was written")
    mount("-o", "remount,rw", str(disk.place))

    during = {
        "read-only from the middle": (
            f"subprocess.run(['mount', '-o', 'remount,ro', {str(disk.place)!r}], check=True)",
            ("Read-only file system",),
        ),
        "removed": (f"shutil.rmtree({str(out)!r})", ("was removed or replaced",)),
        "replaced": (
            f"os.rename({str(out)!r}, {str(out)!r} + '-moved'); os.mkdir({str(out)!r})",
            ("was removed or replaced",),
        ),
        "unmounted": (
            f"subprocess.run(['umount', '-l', {str(disk.place)!r}], check=True)",
            ("was removed or replaced",),
        ),
    }
    for what, (act, words) in during.items():
        disk.clear()
        refused(runs.run(OFTEN + AT_THIRD_SAVE.format(act=act)), what, *words)
        if what == "unmounted":
            mount("-t", "tmpfs", "-o", "size=1G", "none", str(disk.place))
        mount("-o", "remount,rw", str(disk.place))
        report.check(
            what != "replaced" or not list(out.iterdir()), f"{what}: something was written into the other directory"
        )
        if what == "replaced":
            out.rmdir()
            (disk.place / "out-moved").rename(out)
        runs.complete(what)


AT_THIRD_SAVE = """
import os, shutil, subprocess
import zoo_compress.recipe.job as job
real, calls = job.store.write, []
def write(*args, **kwargs):
    done = real(*args, **kwargs)
    calls.append(1)
    if len(calls) == 3:
        {act}
    return done
job.store.write = write
"""


# --- caches and streams -----------------------------------------------------------------------------------------------


def caches(runs: Runs) -> None:
    """Caches, temporary folders and streams on a full disk."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "zoo" / "loading"))
    from hub import COMMIT, serving
    from test_hub import LOAD, load, published, site

    report, disk = runs.report, runs.disk
    disk.clear()
    disk.leave(0)
    env = {"HF_HOME": str(disk.place / "hf"), "TMPDIR": str(disk.place)}
    plain = runs.place / "plain"
    done = runs.zygote.run("compress", "recipe.toml", "--out", str(plain), cwd=runs.place, env=env)
    report.check(
        done.code == 0 and content(plain) == runs.expected, f"a full TMPDIR and HF_HOME: {done.code} {done.err[-500:]}"
    )
    report.tried["caches: a packaged or local model needs neither TMPDIR nor HF_HOME"] += 1
    far = published(runs.place / "far")
    with tempfile.TemporaryDirectory() as folder, serving(far) as hub:
        place = site(Path(folder), far)
        disk.clear()
        for left in (0, 1, 2, 4, 8, 12, 16, 20):
            disk.leave(left * PAGE)
            done = load(place, hub.address, code=LOAD, HF_HOME=env["HF_HOME"])
            said = (
                done.stdout.startswith("WeightsUnavailable: far: ")
                and "No space left on device" in done.stdout
                and done.stdout.count("\n") == 1
            )
            report.check(
                said and "Traceback" not in done.stderr,
                f"a full hub cache, {left} pages left: {done.stdout} {done.stderr[-500:]}",
            )
            report.tried["caches: a full hub cache is one sentence"] += 1
        disk.leave(2**28)
        done = load(place, hub.address, code=LOAD, HF_HOME=env["HF_HOME"])
        report.check(
            done.stdout[:1].isdigit() and COMMIT in str(list(disk.place.rglob("config.json"))),
            f"a hub cache with room again: {done.stdout} {done.stderr}",
        )
    streams(runs)


def streams(runs: Runs) -> None:
    """stdout and stderr on a full disk: a run does not end for a remark."""
    shutil.rmtree(runs.place / "plain")
    command = [sys.executable, "-m", "zoo", "compress", "recipe.toml", "--out", "plain"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=runs.place, stdout=subprocess.PIPE, stderr=full, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        runs.report.check(content(runs.place / "plain") == runs.expected, f"stderr on a full disk: {done.returncode}")
        done = subprocess.run(
            [sys.executable, "-m", "zoo", "list"], cwd=runs.place, stdout=full, stderr=subprocess.PIPE, text=True
        )
    runs.report.check(
        done.returncode == 2 and done.stderr.count("\n") == 1, f"stdout on a full disk: {done.returncode} {done.stderr}"
    )
    runs.report.tried["caches: stdout and stderr on a full disk"] += 2


# --- the script -------------------------------------------------------------------------------------------------------


def namespace() -> list[str]:
    """The command that gives a process mounts of its own, or nothing."""
    for command in NAMESPACES:
        with contextlib.suppress(OSError):
            probe = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
            if probe.returncode == 0:
                return command
    return []


def parts(names: list[str], *, seed: int, folder: Path) -> Report:
    report, draw, disk = Report(), random.Random(seed), Disk(folder / "disk")
    if "saves" in names:
        for name in ("tiny-code", "tiny-vlm", "tiny-t2i"):
            saves(name, disk, report)
            print(f"saves: {name} done", flush=True)
    if set(names) & {"runs", "outputs", "caches"}:
        workplace(folder / "work")
        with Zygote() as zygote:
            runs = Runs(zygote, folder / "work", disk, report)
            runs.alone()
            if "runs" in names:
                growing(runs, step=16, draw=draw)
                print("runs: grew", flush=True)
                for stride in (2, 3, 5):
                    filling(runs, start=1, stride=stride, draw=draw)
                    print(f"runs: filled up at every {stride}th change", flush=True)
                replacing(runs, draw)
                print("runs: the sentence named", dict(sorted(runs.hit.items())), flush=True)
            if "outputs" in names:
                outputs(runs)
            if "caches" in names:
                caches(runs)
    subprocess.run(["umount", "-l", str(disk.place)], check=True)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="saves,runs,outputs,caches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if "ZOO_STRESS_MOUNTS" not in os.environ:
        command = namespace()
        if not command:
            print("skipped: neither root nor a user namespace may mount a tmpfs here")
            return 0
        return subprocess.run(
            [*command, sys.executable, *sys.argv], env=os.environ | {"ZOO_STRESS_MOUNTS": "1"}
        ).returncode
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zoo-disk-") as folder:
        report = parts(asked.parts.split(","), seed=asked.seed, folder=Path(folder))
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
