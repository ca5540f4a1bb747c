"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone).

The first raises `Stopped` in the main thread, so that what runs can save what it has; what must not be torn in two runs
under `whole()`. A second one ends the process at once. So does the first where Python does not come to act on it within
GRACE seconds, in a long computation: what is on disk is whole at any moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

GRACE = 10.0
BOUNCE = 0.5  # one keypress may arrive twice: from the terminal, and from the process that started this one

WORDS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "the terminal was closed"))
    if hasattr(signal, name)  # there is no SIGHUP on Windows
}
BEFORE = "before the work was done."


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `str` says so, and how to go on."""

    def __init__(self, number: int, remark: str = "") -> None:
        self.number = number
        super().__init__(f"{WORDS[signal.Signals(number)]}{f'; {remark}' if remark else f' {BEFORE}'}")

    @property
    def exit_code(self) -> int:
        """As a shell would report it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


@dataclass
class _State:
    """What is known in this process; written by the main thread alone."""

    active: bool = False
    wakeup: int = -1  # where the watcher hears of signals
    number: int = 0  # the signal that asked for the end
    depth: int = 0  # how many `whole()` are being run
    remarks: list[str] = field(default_factory=list)


_state = _State()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """End what runs inside at SIGINT, SIGTERM and SIGHUP, but for those that whoever started us ignores (`nohup`)."""
    if _state.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.__init__(active=True)  # type: ignore[misc]
    wanted = [number for number in WORDS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    handlers = {number: signal.signal(number, _stop) for number in wanted}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _state.wakeup = writing
    watcher = threading.Thread(target=_watch, args=(reading,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)
        _state.__init__()  # type: ignore[misc]


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Handle signals afterwards as before, whatever runs inside: the import of a plugin may ignore, take or block them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in WORDS}
    masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if masked else set()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if _state.active:
            signal.set_wakeup_fd(_state.wakeup, warn_on_full_buffer=False)
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Let what runs inside come to its end before a signal is acted on."""
    if not _state.active:
        with _deferred():
            yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    check()


@contextlib.contextmanager
def _deferred() -> Iterator[None]:
    """As `whole()`, for Ctrl-C in a program that is not ours."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if seen:
        raise KeyboardInterrupt


def check() -> None:
    """Raise `Stopped` where a signal has arrived that was not acted on yet, or was lost in a library."""
    if _state.number and not _state.depth:
        raise _stopped(_state.number)


@contextlib.contextmanager
def remark(text: str) -> Iterator[None]:
    """Say `text` to the user where a signal ends what runs inside."""
    _state.remarks.append(text)
    try:
        yield
    finally:
        _state.remarks.pop()


def _stop(number: int, frame: FrameType | None) -> None:
    if _state.number:
        return  # the watcher decides about the second
    _state.number = number
    check()


def _stopped(number: int) -> Stopped:
    return Stopped(number, _state.remarks[-1] if _state.remarks else "")


def _watch(pipe: int) -> None:
    """End the process where the main thread does not: at a second signal, or when the first is not acted on."""
    first = _next(pipe)
    begun = time.monotonic()
    while first:
        if not select.select([pipe], [], [], GRACE)[0]:
            if not _state.number:
                _end(first)
            continue
        again = _next(pipe)
        if not again:
            return
        if time.monotonic() - begun > BOUNCE:
            _end(again)


def _next(pipe: int) -> int:
    """The next signal that ends the process, or 0 when there will be none."""
    while True:
        byte = os.read(pipe, 1)
        if not byte or byte[0] in WORDS:
            return byte[0] if byte else 0


def _end(number: int) -> Any:
    """End now. The last words go past `sys.stderr`, which the main thread may be writing to."""
    with contextlib.suppress(OSError):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
        os.write(2, f"{shown}\nerror: {_stopped(number)}\n".lstrip("\n").encode())
    os._exit(128 + number)


def _forked() -> None:
    """A forked child has no watcher, and must not wake its parent's."""
    if _state.active:
        _state.wakeup = -1
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
