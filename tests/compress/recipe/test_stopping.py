"""SIGINT, SIGTERM and SIGHUP end a run within seconds, with a sentence and a checkpoint, wherever they come."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open
from tiny import RECIPE, workplace
from zygote import Done, Zygote

OUT = Path("runs/tiny")
KEPT = f"what is finished is kept in {OUT}: the same command goes on from there."
CALIBRATING = (
    RECIPE.replace('"first:1"', '"influence:1"\nkeep_ends = false')
    .replace("steps = 6", "steps = 9")
    .replace('use = "quantize.int8"', 'use = "lowrank.svd"\nratio = 0.5')
)

# Raise a signal when a function is called for the COUNT-th time, so that it comes exactly there.
SIGNAL_AT = """
def install(target, number, count, delay):
    import importlib, os, threading
    name, _, path = target.partition(":")
    owner = importlib.import_module(name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, attribute), []
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            threading.Timer(delay, os.kill, (os.getpid(), number)).start() if delay else os.kill(os.getpid(), number)
        return real(*args, **kwargs)
    setattr(owner, attribute, call)
install({target!r}, {number}, {count}, {delay})
"""


def signal_at(target: str, number: int, *, count: int = 1, delay: float = 0) -> str:
    return SIGNAL_AT.format(target=target, number=int(number), count=count, delay=delay)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote("zoo_compress.methods.lowrank", "zoo_compress.report.sheet") as zygote:
        yield zygote


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    workplace(folder)
    (folder / "recipe.toml").write_text(CALIBRATING, encoding="utf-8")
    return folder


def compress(zygote: Zygote, place: Path, *args: str, setup: str = "") -> Done:
    return zygote.run("compress", "recipe.toml", *args, cwd=place, setup=setup)


def content(out: Path) -> dict[str, bytes]:
    """What a run ends with, without the files that hold its seconds."""
    timed = ("results.json", "report.html", "run.json")
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in timed and not (path.parent.name == "stages" and path.suffix == ".json")
    }


def step(out: Path) -> int:
    for file in out.glob("work/*/training.safetensors"):
        with safe_open(file, framework="pt") as checkpoint:
            return int(checkpoint.metadata()["step"])
    return 0


def test_stopped_at_every_moment_a_run_goes_on_and_ends_with_the_same_bytes(
    zygote: Zygote, place: Path, tmp_path: Path
):
    alone = Path(shutil.copytree(place, tmp_path / "alone"))
    assert compress(zygote, alone).code == 0
    for moment, target, count in (
        ("planning", "zoo_compress.recipe.planner:advance", 2),
        ("influence", "zoo_compress.calibrate.watch:joined", 2),
        ("saving", "zoo.artifact.weights:write", 1),
        ("training", "accelerate:Accelerator.backward", 5),
        ("an optimizer step", "torch.optim:AdamW.step", 3),
        ("whitening", "torch.linalg:svd", 2),
        ("measuring", "zoo_compress.recipe.measuring:measure", 3),
        ("report", "zoo_compress.report.page:html", 1),
        ("publishing", "zoo_compress.recipe.folder:_fill", 3),
        ("exchange", "zoo_compress.recipe.folder:RunFolder._exchange", 1),
    ):
        done = compress(zygote, place, setup=signal_at(target, signal.SIGTERM, count=count))
        assert (done.code, done.err.splitlines()[-1]) == (143, f"error: terminated; {KEPT}"), (moment, done.err)
        assert "Traceback" not in done.err and not list((place / OUT).rglob(".*")), moment
        if moment == "training":
            assert step(place / OUT) == 4 and "distill: stopped after step 4, which is saved" in done.err
        if moment == "an optimizer step":  # which is not torn in two
            assert step(place / OUT) == 7 and "going on from step 4" in done.err
    done = compress(zygote, place)
    assert done.code == 0 and content(place / OUT) == content(alone / OUT)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 129, "the terminal was closed")],
    ids=["int", "hup"],
)
def test_other_signals_end_a_run_like_that(zygote: Zygote, place: Path, number: int, code: int, word: str):
    shutil.rmtree(place / OUT, ignore_errors=True)
    done = compress(zygote, place, setup=signal_at("torch.optim:AdamW.step", number, count=2))
    assert (done.code, done.err.splitlines()[-1], step(place / OUT)) == (code, f"error: {word}; {KEPT}", 2)


def test_what_measures_in_a_process_of_its_own_ends_with_the_run(zygote: Zygote, place: Path):
    args = ("compress", "recipe.toml", "--until", "1", "--set", "evaluate.speed={prefill = 8, decode = 2, repeats = 1}")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with zygote.start(
            *args, cwd=place, setup=signal_at("subprocess:Popen.communicate", number, delay=0.3)
        ) as process:
            pass
        code = 143 if number == signal.SIGTERM else -signal.SIGKILL
        assert process.done.code == code and "measuring speed" in process.done.err, process.done.err
        gone = time.monotonic() + 20  # a killed one's child notices when it has started
        while members(process.pid) and time.monotonic() < gone:
            time.sleep(0.1)
        assert not members(process.pid)


def members(group: int) -> list[Any]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def test_a_second_signal_ends_at_once_and_so_does_the_first_where_python_does_not_act(zygote: Zygote, place: Path):
    """While what cleans up takes its time, and in a computation that lasts."""
    shutil.rmtree(place / OUT, ignore_errors=True)
    slow = "import time, zoo_compress.train.checkpoint as c\nc.Checkpoint.write = lambda *_: time.sleep(60)\n"
    twice = (
        slow
        + signal_at("torch.optim:AdamW.step", signal.SIGINT, count=2)
        + signal_at("torch.optim:AdamW.step", signal.SIGINT, count=2, delay=1)
    )
    begun = time.monotonic()
    done = compress(zygote, place, setup=twice)
    assert (done.code, done.err.splitlines()[-1]) == (130, f"error: interrupted; {KEPT}")
    stuck = "import zoo.system.signals, ctypes\nzoo.system.signals.GRACE = 1\nimport torch.optim\ntorch.optim.AdamW.zero_grad = lambda *_: ctypes.CDLL(None).usleep(60_000_000)\n"
    done = compress(zygote, place, setup=stuck + signal_at("torch.optim:AdamW.step", signal.SIGTERM, delay=0.5))
    assert (done.code, done.err.splitlines()[-1]) == (143, f"error: terminated; {KEPT}")
    assert time.monotonic() - begun < 50


def test_ctrl_c_in_a_program_of_ones_own_leaves_a_checkpoint_of_whole_steps(place: Path):
    """`zoo_compress.run` in a program without our handlers: Python's own KeyboardInterrupt."""
    shutil.rmtree(place / OUT, ignore_errors=True)
    code = f"""{signal_at("torch.optim:AdamW.step", signal.SIGINT, count=3)}
from zoo_compress import Recipe, run
try:
    run(Recipe.load("recipe.toml"))
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, step(place / OUT)) == (0, "stopped\n", 3), done.stderr


def test_what_nohup_ignores_stays_ignored(zygote: Zygote, place: Path):
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    done = compress(
        zygote, place, "--until", "1", setup=ignoring + signal_at("zoo_compress.calibrate.watch:joined", signal.SIGHUP)
    )
    assert done.code == 0, done.err


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.4, 1.5])
def test_a_fresh_process_is_stopped_while_it_starts(place: Path, delay: float):
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "zoo", "compress", "recipe.toml"],
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
    ) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM) and "Traceback" not in err, err
