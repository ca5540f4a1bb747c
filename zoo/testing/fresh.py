"""A fresh process that is asked what saved models compute and what data holds: one for many questions, since it imports
for seconds.

A question and its answer are a line of JSON each, on stdin and stdout; what a plugin prints there goes to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from zoo.errors import one_line

Answer = dict[str, Any]


class FreshProcess:
    """The process; it starts when it is first asked, and again where a question killed it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the object

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> subprocess.Popen[str]:
        """Start it, if it does not run: its imports go on beside what is done here."""
        if self._process is None:
            self._said.seek(0)
            self._said.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zoo.testing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
            weakref.finalize(self, _end, self._process)
        return self._process

    def outputs(self, folder: Path) -> Answer:
        """Load an artifact there and return what `zoo.testing.outputs` says of it, and the bytes its weight files hold."""
        return self._ask({"outputs": str(folder.absolute())})

    def fingerprint(self, reference: str) -> str:
        """Open data there and return its fingerprint.

        Raises:
            AssertionError: it cannot be opened there.
        """
        answer = self._ask({"fingerprint": reference})
        if "error" in answer:
            raise AssertionError(f"{reference} cannot be opened in a fresh process: {answer['error']}")
        return str(answer["fingerprint"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _ask(self, request: dict[str, Any]) -> Answer:
        import torch

        process = self.start()
        assert process.stdin and process.stdout
        try:
            print(json.dumps({"threads": torch.get_num_threads(), **request}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: Answer = json.loads(line)
            return answer
        self.close()
        self._said.seek(0)
        last = self._said.read().strip().splitlines()[-1:] or ["it said nothing"]
        return {"error": f"the process ended ({last[0][:300]})"}


@functools.cache
def shared() -> FreshProcess:
    """One for everything that is checked in this process; it ends with it."""
    return FreshProcess()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that has answered everything."""
    assert process.stdin and process.stdout
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # a question it did not live to hear
            stream.close()


def serve() -> None:
    """Answer on stdout every request that comes in on stdin."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request.pop("threads"))
        try:
            answer = _answer(request)
        except (Exception, SystemExit) as error:  # said of this one, and the others go on
            answer = {"error": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any]) -> Answer:
    if "fingerprint" in request:
        from zoo.data.open import open_data

        return {"fingerprint": open_data(request["fingerprint"]).fingerprint}
    from zoo.loading.load import load
    from zoo.testing.computed import outputs

    folder = Path(request["outputs"])
    model = load(folder)
    files = model.family.weight_files(model.spec.config).values()
    return {**outputs(model), "stored bytes": sum(_stored_bytes(folder / file) for file in files)}


def _stored_bytes(path: Path) -> int:
    """Bytes of a safetensors file without its header (eight bytes of length, then JSON)."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
