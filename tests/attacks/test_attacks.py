"""Every attack in this folder: refused in one sentence, in bounded time and memory; no code runs, nothing outside is touched."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from outsiders import python
from zygote import Zygote

HERE = Path(__file__).parent
ATTACKS = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("victim", "test_attacks"))
SECONDS, BYTES = 20, 1 << 30  # of processor time, and of memory beyond what importing takes

# Run in the process before the command: notes what an attack is after, and bounds what it may use.
WATCH = """
import os, resource, signal, sys, tempfile
signal.alarm({seconds} * 3)  # what waits for ever uses no processor time
place, notes = {place!r}, {notes!r}
inside = (place, tempfile.gettempdir() + "/zoo", "/dev/")
def watch(event, args):
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        told = writes and isinstance(path, str) and not os.path.abspath(path).startswith(inside) and path != notes
    else:
        told = event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "ctypes.dlopen")
        told = told and (event, args) != ("ctypes.dlopen", (None,))  # the C library, which is here already
    if told:
        with open(notes, "a") as file:
            print(event, *map(repr, args), file=file)
sys.addaudithook(watch)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, used + {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(HERE))
    return tmp_path_factory.mktemp("attacks")


def attack_of(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_and_nothing_happens(name: str, folder: Path, zygote: Zygote):
    module = attack_of(name)
    assert module.__doc__ and len(module.__doc__.split()) > 12, "an attack has a story"
    place, canary, notes = folder / name, folder / f"{name}.canary", folder / f"{name}.notes"
    place.mkdir()
    for args, says in module.prepare(place, canary):
        setup = WATCH.format(place=str(place), notes=str(notes), memory=BYTES, seconds=SECONDS)
        done = zygote.run(*args, cwd=place, setup=setup)
        shown = f"zoo {' '.join(args)}: {done.code}\n{done.out[-500:]}\n{done.err[-1500:]}"
        assert "Traceback" not in done.err and "unexpected" not in done.err and done.code >= 0, shown
        printed = done.err + ("" if args[0] == "run" else done.out)  # what a model writes is the model's
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed), (
            "control characters reach the terminal: " + repr(shown)
        )
        assert not canary.exists(), "code of the attack ran: " + shown
        assert not notes.exists(), notes.read_text() + shown
        if says:
            errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
            assert done.code in (1, 2) and len(errors) == 1 and re.search(says, errors[0]) and len(errors[0]) < 1000, (
                shown
            )


def test_the_watch_sees_what_attacks_are_after(folder: Path, zygote: Zygote):
    """The guard itself, watched once: a pickle, a process, and a file outside are noted."""
    place, notes, outside = folder / "guard", folder / "guard.notes", folder / "outside"
    place.mkdir()
    acts = f"import pickle, subprocess; pickle.loads(pickle.dumps(subprocess.Popen)); subprocess.run(['true']); open({str(outside)!r}, 'w')"
    done = zygote.run(
        "list", cwd=place, setup=WATCH.format(place=str(place), notes=str(notes), memory=BYTES, seconds=SECONDS) + acts
    )
    assert done.code == 0, done.err
    seen = {line.split()[0] for line in notes.read_text().splitlines()}
    assert {"pickle.find_class", "subprocess.Popen", "open"} <= seen
    assert json.dumps(sorted(seen))


KERNELS = """
from pathlib import Path
def get_kernel(repository, **options):
    with open({canary!r}, "a") as file:
        print(repository, file=file)
    raise RuntimeError("no hub here")
"""


@pytest.mark.parametrize("first", ["import zoo", "import zoo, kernels", "import zoo, diffusers"])
def test_bitsandbytes_fetches_no_compiled_code(first: str, tmp_path: Path):
    """With the package `kernels` installed, bitsandbytes asks a hub for compiled code as soon as it is imported, by whomever."""
    canary = tmp_path / "canary"
    (tmp_path / "site/kernels").mkdir(parents=True)
    (tmp_path / "site/kernels/__init__.py").write_text(KERNELS.format(canary=str(canary)))
    after = "import bitsandbytes, kernels; print(kernels.get_kernel.__module__)"
    done = python("-c", f"{first}\n{after}", site=tmp_path / "site")
    assert (done.returncode, done.stdout) == (0, "kernels\n"), done.stderr
    assert not canary.exists(), "asked for " + canary.read_text()
