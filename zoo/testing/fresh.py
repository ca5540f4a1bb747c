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
from typing import TYPE_CHECKING, Any

from zoo.errors import one_line

if TYPE_CHECKING:
    from zoo.model.model import Model

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
                # with another order of sets than here, whatever is set
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "random"},
            )
            weakref.finalize(self, _end, self._process)
        return self._process

    def outputs(self, folder: Path) -> Answer:
        """Load an artifact there and return what `zoo.testing.outputs` says of it, and the bytes its weight files hold."""
        return self._ask({"outputs": str(folder.absolute())})

    def random_weights(self, name: str) -> str:
        """Draw the random weights of a model there, and return the hash of its tensors; what is wrong, where it fails."""
        answer = self._ask({"random": name})
        return str(answer.get("tensors", answer.get("error")))

    def applied(self, compressor: str, options: dict[str, Any], start: dict[str, str]) -> Answer:
        """Apply a compressor there to a model (`Bench.start`); return the hash of the tensors it leaves, and its record.

        Raises:
            AssertionError: it fails there.
        """
        answer = self._ask({"apply": compressor, "options": options, "start": start})
        if "error" in answer:
            raise AssertionError(f"{compressor} fails in a fresh process: {answer['error']}")
        return answer

    def figures(self, evaluator: str, start: dict[str, str], reference: str) -> Answer:
        """Measure a model there (`Bench.start`), or data alone; return the figures.

        Raises:
            AssertionError: it fails there.
        """
        answer = self._ask({"measure": evaluator, "start": start, "data": reference})
        if "error" in answer:
            raise AssertionError(f"{evaluator} fails in a fresh process: {answer['error']}")
        figures: Answer = answer["figures"]
        return figures

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
    if "apply" in request:
        return _applied(request)
    if "measure" in request:
        return {"figures": _measured(request)}
    from zoo.loading.load import load
    from zoo.testing.computed import hash_of_tensors, outputs

    if "random" in request:
        return {"tensors": hash_of_tensors(load(request["random"], weights="random"))}
    folder = Path(request["outputs"])
    model = load(folder)
    files = model.family.weight_files(model.spec.config).values()
    return {**outputs(model), "stored bytes": sum(_stored_bytes(folder / file) for file in files)}


def _applied(request: dict[str, Any]) -> Answer:
    from zoo import registry
    from zoo.testing.computed import hash_of_tensors
    from zoo.testing.materials import context_for
    from zoo.testing.surroundings import Surroundings

    start, compressor = _started(request["start"]), registry.compressor(request["apply"])
    model = start.copy()
    with Surroundings():  # whatever it leaves is not to show in later answers
        model.apply(compressor, compressor.Options(**request["options"]), context_for(start))
    return {"tensors": hash_of_tensors(model), "record": model.lineage[-1].record}


def _started(start: dict[str, str]) -> Model:
    """The model that a bench has in the other process."""
    from zoo.loading.load import load
    from zoo.testing.materials import awake

    return load(start["saved"]) if "saved" in start else awake(load(start["random"], weights="random"))


def _measured(request: dict[str, Any]) -> Answer:
    from zoo import registry
    from zoo.data.open import open_data
    from zoo.testing.materials import data_for, options_of
    from zoo.testing.surroundings import Surroundings

    evaluator = registry.evaluator(request["measure"])
    model = _started(request["start"]) if request["start"] else None
    data = open_data(request["data"]) if request["data"] or model is None else data_for(model)
    with Surroundings():
        figures: Answer = evaluator.measure(model, data, options=options_of(evaluator))
    return figures


def _stored_bytes(path: Path) -> int:
    """Bytes of a safetensors file without its header (eight bytes of length, then JSON)."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
