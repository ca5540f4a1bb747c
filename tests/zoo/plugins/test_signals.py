"""Signals end a command whatever a plugin does to them when it is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outsiders import install

COMMAND = '[[command]]\nname = "wait"\nsummary = "Made up for a test"\n'
CODE = """
import signal
{deaf}
from zoo.hooks import hookimpl

@hookimpl
def register_commands(register):
    register("wait", "out_deaf.waiting:wait")
"""
WAITING = """
import signal, time
{deaf}

def wait() -> None:
    "Wait for a long time."
    print("ready", flush=True)
    time.sleep(60)
"""
DEAF = {
    "ignoring": "signal.signal(signal.{name}, signal.SIG_IGN)",
    "taking": "signal.signal(signal.{name}, lambda *what: None)",
    "blocking": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])",
    "not being woken": "signal.set_wakeup_fd(-1); signal.signal(signal.{name}, signal.SIG_DFL)",
}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no such signals")
@pytest.mark.parametrize("way", DEAF)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_plugin_that_is_deaf_to_signals_can_be_stopped(way: str, name: str, tmp_path: Path):
    deaf = DEAF[way].format(name=name)
    package = install(tmp_path, "out_deaf", registry=COMMAND, code=CODE.format(deaf=deaf))
    (package / "waiting.py").write_text(WAITING.format(deaf=deaf))
    with subprocess.Popen(
        [sys.executable, "-m", "zoo", "-q", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            number = getattr(signal, name)
            process.send_signal(number)
            _, said = process.communicate(timeout=8)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert said.endswith("before the work was done.\n") and said.startswith("error: ")
