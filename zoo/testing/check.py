"""One check of a contract, and what comes of it."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from zoo.errors import ZooError, one_line

Value = TypeVar("Value")


class Skipped(Exception):
    """A check that does not apply; the text says why."""


@dataclass(frozen=True)
class Check:
    """One question about one thing that a plugin adds.

    `run` is given a folder to write into, and raises AssertionError or ZooError with a sentence where the answer is no,
    `Skipped` where the question does not apply.
    """

    kind: str  # "plugin", "model", or a kind of name: "compressor", "loss", ...
    name: str  # "zoo-example:tiny-thing"; of a compressor, "zoo-example:thing on tiny-code"
    check: str  # "build", "estimate", "save and reload", ...
    run: Callable[[Path], None] = field(compare=False, repr=False)
    # the plugin's, whose line an exception is blamed on
    package: Path | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}::{self.check}"


@dataclass(frozen=True)
class Result:
    """What came of a check; `reason` is empty where all is well."""

    check: Check
    outcome: Literal["ok", "failed", "not applicable"]
    reason: str = ""
    seconds: float = 0.0
    error: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if self.outcome == "ok":
            return "ok"
        return f"{'FAILED' if self.outcome == 'failed' else self.outcome}: {self.reason}"


class Once(Generic[Value]):
    """A value that is made when it is first asked for; where that fails, it fails alike every time."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: list[Value] = []
        self._error: BaseException | None = None

    @property
    def made(self) -> bool:
        """Whether it is there already."""
        return bool(self._made)

    def __call__(self) -> Value:
        if self._error is not None:
            raise self._error
        if not self._made:
            try:
                self._made.append(self._make())
            except (Exception, SystemExit) as error:
                self._error = error
                raise
        return self._made[0]

    def after(self, check: str) -> Value:
        """The value for what comes after `check`, which has said what is wrong where there is none."""
        try:
            return self()
        except Skipped:
            raise
        except (Exception, SystemExit):
            raise Skipped(f"see {check!r}") from None


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def perform(check: Check, folder: Path) -> Result:
    """Run one check; whatever the plugin raises is its result, and what it prints goes to stderr."""
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            check.run(folder)
    except Skipped as reason:
        return Result(check, "not applicable", str(reason), time.perf_counter() - start)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit and pytest's own outcomes among it
        return Result(check, "failed", sentence(error, check.package), time.perf_counter() - start, error)
    return Result(check, "ok", "", time.perf_counter() - start)


def sentence(error: BaseException, package: Path | None = None) -> str:
    """Say in one line what went wrong; of an exception that was not meant for users, also where in the plugin it arose."""
    if isinstance(error, ZooError | AssertionError) and str(error):
        return " ".join(str(error).split())
    what = f"{error!r} was raised" if isinstance(error, SystemExit) else one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if package is not None and Path(frame.filename).is_relative_to(package)]
    if not inside:
        return what
    return f"{what} ({Path(inside[-1].filename).relative_to(package or '')}, line {inside[-1].lineno})"
