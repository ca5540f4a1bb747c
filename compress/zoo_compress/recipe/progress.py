"""Progress on the terminal: bars with time left where there is one, plain lines where there is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any


class Terminal:
    """A `Progress` on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def __enter__(self) -> Terminal:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        if self.bar:
            self.bar.console.print(text, style="dim", markup=False, highlight=False)
        elif not self.quiet:
            _print(text)

    def track(self, items: Iterable[Any], *, total: int, label: str) -> Iterator[Any]:
        if self.bar:
            task = self.bar.add_task(label, total=total)
            for item in items:
                yield item
                self.bar.advance(task)
            self.bar.remove_task(task)
        else:
            yield from self._lines(items, total=total, label=label)

    def _lines(self, items: Iterable[Any], *, total: int, label: str) -> Iterator[Any]:
        """Without a terminal: a line every ten seconds, with the time left."""
        begun = said = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if not self.quiet and now - said >= 10 and done < total:
                left = (now - begun) / done * (total - done)
                _print(f"  {label}: {done} of {total}, about {left:.0f} s left")
                said = now


def _print(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed, a pipe, a full disk: a run does not end for a remark
        print(text, file=sys.stderr, flush=True)
