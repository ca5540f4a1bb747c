"""Every architecture of libraries through every check and every stage.

    python tests/sweep/sweep.py transformers|timm|diffusers ... [--resume] [--only NAME ...] [--stages STAGE ...] [--out FILE]

A line of JSON for each architecture, written when it is done. Each is examined by a child process, so that one that
crashes or hangs is a finding and the sweep goes on; what is saved is loaded again by a second process that lives long.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the tests share

from architectures import PARTS, Architecture, architectures
from findings import FAILED, Finding
from stage_checks import STAGES

from zoo.testing.fresh import FreshProcess

LIMIT = 240  # seconds of processor time for one architecture, so that a busy machine makes no failures
HANGS = 1800  # seconds after which one that computes nothing is ended
SLOTS = 2  # architectures at the same time


def sweep(
    chosen: Iterable[Architecture],
    write: Callable[[dict[str, Any]], None],
    *,
    stages: Sequence[str],
    slots: int = SLOTS,
) -> None:
    """Examine architectures, a few at the same time, and write what was found of each when it is done."""
    waiting = list(chosen)[::-1]
    with tempfile.TemporaryDirectory(prefix="zoo-sweep-") as folder:
        places = [_Place(Path(folder) / str(i), stages) for i in range(min(slots, len(waiting)))]
        while waiting or any(place.busy for place in places):
            for place in places:
                if (done := place.done()) is not None:
                    write(done)
                if not place.busy and waiting:
                    place.begin(waiting.pop())
            time.sleep(0.02)
        for place in places:
            place.fresh.close()


class _Place:
    """Where one architecture after the other is examined, each in a child of this process."""

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self.folder, self.stages, self.fresh = folder, stages, FreshProcess()
        self.number, self.pid, self.began = 0, 0, 0.0
        self.architecture = Architecture("", "")

    @property
    def busy(self) -> bool:
        return self.pid > 0

    def begin(self, architecture: Architecture) -> None:
        if self.fresh.start().poll() is not None:  # a question killed it
            self.fresh.close()
            self.fresh.start()
        self.number, self.architecture, self.began = self.number + 1, architecture, time.monotonic()
        place = self.folder / str(self.number)
        place.mkdir(parents=True)
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(architecture, place, self.fresh, self.stages)

    def done(self) -> dict[str, Any] | None:
        """The findings of the child, where it has ended or its time is over."""
        if not self.busy:
            return None
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        why = ""
        if not pid and seconds < HANGS:
            return None
        if not pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            why = f"it did not end within {HANGS} s"
            self.fresh.close()  # it may still be busy with the last question
        elif code := os.waitstatus_to_exitcode(status):
            why = f"the process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
            if code == -signal.SIGXCPU:
                why = f"it took more than {LIMIT} s of processor time"
            self.fresh.close()
        self.pid = 0
        place = self.folder / str(self.number)
        findings = [json.loads(line) for line in (place / "findings").read_text().splitlines()]
        if why:
            last = findings[-1]["check"] if findings else "the start"
            findings.append(asdict(Finding("process", "", FAILED, f"{why}, after {last!r}")))
        _remove(place)
        return {
            **asdict(self.architecture),
            "seconds": round(seconds, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
            "versions": versions(),
            "findings": findings,
        }


def _child(architecture: Architecture, place: Path, fresh: FreshProcess, stages: Sequence[str]) -> None:
    """Examine an architecture and end."""
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: be killed when the parent is gone
        log = os.open(place / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        import torch
        from examine import examine

        torch.set_num_threads(1)
        with (place / "findings").open("w") as file:
            for finding in examine(architecture, place, fresh, stages):
                print(json.dumps(asdict(finding)), file=file, flush=True)
        code = 0
    finally:
        os._exit(code)


def _remove(place: Path) -> None:
    import shutil

    shutil.rmtree(place, ignore_errors=True)


def versions() -> dict[str, str]:
    """The versions of the libraries that the findings depend on."""
    return {name: version(name) for name in ("torch", *PARTS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", choices=PARTS, nargs="+", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--resume", action="store_true", help="leave out what the file already holds")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME", help="these architectures: 'llama', or 'bart seq2seq'"
    )
    parser.add_argument("--stages", nargs="*", default=STAGES, metavar="STAGE", help="only these; none: loads and runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: sweep-PARTS.jsonl")
    asked = parser.parse_args()
    out: Path = asked.out or Path(f"sweep-{'-'.join(asked.parts)}.jsonl")
    every = [architecture for part in asked.parts for architecture in architectures(part)]
    chosen = [a for a in every if not asked.only or {a.name, a.name.split()[0]} & set(asked.only)]
    if not chosen:
        parser.error(f"no architecture of {', '.join(asked.parts)} is called so: {', '.join(asked.only)}")
    known = set(_names(out)) if asked.resume and out.exists() else set()
    _import_all(asked.parts)
    with out.open("a" if asked.resume else "w", encoding="utf-8") as file:
        remaining = [architecture for architecture in chosen if architecture.name not in known]
        sweep(remaining, Progress(file, len(remaining)), stages=asked.stages)
    return 0


@dataclass
class Progress:
    """Writes each line to the file, and on stderr how far it is."""

    file: Any
    total: int
    count: int = 0
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self.file, flush=True)
        self.count += 1
        left = (time.monotonic() - self.began) / self.count * (self.total - self.count)
        failed = sum(finding["verdict"] == FAILED for finding in line["findings"])
        said = f"{failed} failed" if failed else line["findings"][0]["verdict"] if line["findings"] else "nothing"
        print(
            f"{self.count}/{self.total} {line['name']}: {said}, {line['seconds']:.0f} s; {left / 60:.0f} minutes left",
            file=sys.stderr,
            flush=True,
        )


def _names(out: Path) -> Iterator[str]:
    yield from (json.loads(line)["name"] for line in out.read_text(encoding="utf-8").splitlines())


def _import_all(parts: Sequence[str]) -> None:
    """Import once what every child would import for seconds; nothing is computed, so that a fork loses no thread."""
    import accelerate.utils  # noqa: F401
    import bitsandbytes  # noqa: F401
    import scipy.optimize  # noqa: F401  # which transformers.loss imports
    import torch._dynamo
    import torch._inductor  # noqa: F401
    import torch_pruning  # noqa: F401
    import transformers
    import transformers.modeling_utils
    import transformers.models.llama.modeling_llama  # noqa: F401
    import zoo_slm.language  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    if "timm" in parts:
        import timm  # noqa: F401
        import zoo_timm.family  # noqa: F401
    if "diffusers" in parts:
        import diffusers  # noqa: F401
        import zoo_snapgen.family  # noqa: F401
    import examine  # noqa: F401

    gc.collect()
    gc.freeze()  # what is here stays: the children's collections pass it over


if __name__ == "__main__":
    sys.exit(main())
