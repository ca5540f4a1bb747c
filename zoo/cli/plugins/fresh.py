"""Looking at plugins from a fresh process, so that one which hangs, crashes or ends the process takes nothing with it.

What the process finds comes back in a file: whatever a plugin prints cannot be mistaken for it. Nothing here imports a
plugin into the process that asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import PluginError, ZooError, one_line, plain
from zoo.plugins import manager, registering

TIMEOUT = 20.0  # seconds for one plugin to be imported and registered


@dataclass(frozen=True)
class Loaded:
    """What came of loading one plugin: the seconds it took, or the reason it failed."""

    name: str
    seconds: float = 0.0
    fault: str = ""


def load_each(
    names: Iterable[str],
    *,
    timeout: float = TIMEOUT,
    at_a_time: int = 2,
    verbose: bool = False,
    all_in_use: bool = False,
) -> Iterator[Loaded]:
    """Load every plugin named in a process of its own, a few at a time; they come back as they are done.

    Args:
        verbose: let what the plugins print through to stderr.
        all_in_use: whatever ZOO_PLUGINS says, and ZOO_STRICT of other plugins.
    """
    waiting = list(names)
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                running.append(
                    _Process("load", waiting.pop(0), timeout=timeout, verbose=verbose, all_in_use=all_in_use)
                )
            for process in [process for process in running if process.ended()]:
                running.remove(process)
                yield _loaded(process)
            time.sleep(0.01)
    finally:
        for process in running:
            process.stop()


def look() -> list[dict[str, Any]]:
    """The facts of every installed plugin, as a process started now sees them, whatever ZOO_PLUGINS says.

    Raises:
        PluginError: zoo itself does not start any more.
    """
    process = _Process("look", "", timeout=60.0, all_in_use=True)
    try:
        while not process.ended():
            time.sleep(0.01)
    finally:
        process.stop()
    if process.answer is None:
        raise PluginError(f"zoo itself does not start any more in a fresh process: {process.last_words}")
    return list(process.answer)


class _Process:
    """A Python process that asks `main` below one question, and may take so long to answer."""

    def __init__(self, question: str, name: str, *, timeout: float, all_in_use: bool, verbose: bool = False) -> None:
        self.name, self.timeout = name, timeout
        self.answer: Any = None
        self.last_words = ""
        self._folder = tempfile.TemporaryDirectory(prefix="zoo-", ignore_cleanup_errors=True)
        self._answer_file, self._said = Path(self._folder.name, "answer.json"), Path(self._folder.name, "said.txt")
        code = "from zoo.cli.plugins.fresh import main; main()"
        hidden = ("ZOO_PLUGINS", "ZOO_STRICT") if all_in_use else ()
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, *_safe_path(), "-c", code, question, name, str(self._answer_file)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if verbose else said,
                stderr=None if verbose else said,
                start_new_session=True,
            )
        self._until = time.monotonic() + timeout
        self.timed_out = False

    def ended(self) -> bool:
        """Whether it has ended, by itself or because its time was up."""
        if self._process.poll() is None:
            if time.monotonic() < self._until:
                return False
            self.timed_out = True
        self.stop()
        return True

    @property
    def code(self) -> int:
        return int(self._process.returncode)

    def stop(self) -> None:
        """End it and what it started, and keep what it said."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError, ValueError):
            self.answer = json.loads(self._answer_file.read_text(encoding="utf-8"))
        with contextlib.suppress(OSError):
            lines = self._said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self.last_words = self.last_words or (plain(lines[-1]) if lines else "it said nothing")
        self._folder.cleanup()


def _safe_path() -> list[str]:
    """Keep the working directory off the new process's path, unless it is on ours."""
    return [] if "" in sys.path or str(Path.cwd()) in sys.path else ["-P"]


def _loaded(process: _Process) -> Loaded:
    """Read one answer, or say how the process ended without one."""
    if process.timed_out:
        return Loaded(process.name, fault=f"was not imported within {process.timeout:g} s")
    if isinstance(process.answer, dict):
        return Loaded(process.name, process.answer["seconds"], process.answer["fault"])
    if process.code < 0:
        with contextlib.suppress(ValueError):
            return Loaded(
                process.name, fault=f"crashes Python while it is imported ({signal.Signals(-process.code).name})"
            )
    return Loaded(process.name, fault=f"ends the process while it is imported (exit code {process.code})")


# --- in the fresh process ---------------------------------------------------------------------------------------------


def main() -> None:
    """Answer the question in `sys.argv`, write the answer to the file named there, and end without further ado."""
    question, name, file = sys.argv[1:]
    answer: object = _load(name) if question == "load" else _look()
    Path(file).write_text(json.dumps(answer), encoding="utf-8")
    sys.stderr.flush()
    os._exit(0)  # threads and exit handlers of a plugin have no say


def _look() -> list[dict[str, Any]]:
    import zoo.cli.shell  # noqa: F401  # whatever every command needs is here, so that a broken dependency is told
    from zoo.cli.plugins.facts import facts, loadable, missing

    plugins = manager.plugins_in_use(disabled=True)
    return [
        facts(plugin) | {"origin": plugin.origin, "missing": missing(plugin), "loadable": loadable(plugin)}
        for plugin in plugins
    ]


def _load(name: str) -> dict[str, Any]:
    started = time.perf_counter()
    fault = ""
    try:
        manager.load(name)
    except ZooError as error:
        fault = one_line(error).removeprefix(f"Plugin {name} ").removeprefix("cannot be used: ")
    except BaseException as error:  # even KeyboardInterrupt: there is no one at the keyboard
        fault = f"cannot be imported: {one_line(error)}"
    return {"seconds": registering.load_seconds().get(name, time.perf_counter() - started), "fault": plain(fault)}
