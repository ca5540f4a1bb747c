"""How long a run has worked, over all of its sessions: kept in run.json, so that neither a kill nor a rerun loses it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass
class Times:
    """The time of all sessions in which something was done, and of the stages that did not get to their end in them."""

    started: str = ""  # the first of them
    seconds: float = 0.0  # of those that have ended
    sessions: int = 0
    unfinished: dict[str, float] = field(default_factory=dict)  # name of a stage -> seconds it has taken so far
    began: float = field(default_factory=time.time)  # this session
    clock: float | None = field(default_factory=time.monotonic)  # None: it has ended
    working: bool = False  # whether this session has done anything
    stage: str = ""  # what is under way
    stage_began: float = 0.0

    @classmethod
    def read(cls, kept: Any, folder: Path) -> Times:
        """Go on from what run.json says; a session that was killed lasted until it last wrote into `folder`."""
        try:
            times = cls(
                str(kept["started"]),
                float(kept["seconds"]),
                int(kept["sessions"]),
                {str(name): float(seconds) for name, seconds in kept["unfinished"].items()},
            )
            if killed := kept.get("now"):
                last = max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
                times.seconds += max(0.0, last - float(killed["began"]))
                if stage := str(killed["stage"]):
                    times.unfinished[stage] = times.unfinished.get(stage, 0.0) + max(
                        0.0, last - float(killed["stage_began"])
                    )
        except (LookupError, TypeError, ValueError, AttributeError, OSError):  # of an older zoo, or written by hand
            return cls()
        return times

    def to_json(self) -> dict[str, Any]:
        now = {"began": self.began, "stage": self.stage, "stage_began": self.stage_began}
        return {
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "sessions": self.sessions,
            "unfinished": self.unfinished,
            **({"now": now} if self.working and self.clock is not None else {}),
        }

    def work(self, stage: str = "") -> None:
        """Something is done: the session counts. A stage that is begun, or gone on with, is timed by its name."""
        self.stage, self.stage_began = stage, time.time()
        if not self.working:
            self.working, self.sessions = True, self.sessions + 1
            self.started = self.started or datetime.now(UTC).isoformat(timespec="seconds")

    def interrupt(self, stage: str, seconds: float) -> None:
        """The stage did not get to its end."""
        self.unfinished[stage] = self.unfinished.get(stage, 0.0) + seconds
        self.stage = ""

    def finish(self, stage: str) -> None:
        """The stage did."""
        self.unfinished.pop(stage, None)
        self.stage = ""

    def stop(self) -> Mapping[str, Any]:
        """End the session, unless it has ended; return what there is to say of all of them."""
        if self.clock is not None and self.working:
            self.seconds += time.monotonic() - self.clock
        self.clock = None
        return {"started": self.started, "seconds": round(self.seconds, 1), "sessions": self.sessions}
