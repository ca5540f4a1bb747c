"""What code of a plugin has to leave as it was: random states, torch's settings and functions, the process, and itself.

One instance of a plugin's class serves every model of a process, and other models are computed beside it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from reprlib import Repr
from typing import Any

from zoo.testing.check import require

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]  # how it is read, and how it is set again
SHORT = Repr()
SHORT.maxdict = SHORT.maxlist = SHORT.maxset = 100


@contextmanager
def surroundings_kept(what: str, *things: Any) -> Iterator[None]:
    """Check that what runs inside leaves everything around it as it was, `things` of a plugin included; put it back.

    Raises:
        AssertionError: says what was changed.
    """
    before = random_states()
    with Surroundings(*things) as around:
        yield
        changed = [f"the global random state of {name}" for name in changed_states(before)] + around.changes()
    require(not changed, f"{what} changes {'; and '.join(changed[:3])}{remedy(changed)}")


def random_states() -> dict[str, str]:
    import random

    import numpy as np
    import torch

    states: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
        "random": random.getstate(),
    }
    if torch.cuda.is_available():
        states["torch.cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return {name: hashlib.sha256(repr(state).encode()).hexdigest() for name, state in states.items()}


def changed_states(before: dict[str, str]) -> list[str]:
    """The global random states that are not as they were."""
    return [name for name, state in random_states().items() if state != before[name]]


def remedy(changed: list[str]) -> str:
    """What to do instead, for the end of a sentence about what was changed."""
    if any("random state" in one for one in changed):
        return "; draw from a generator of its own"
    if any(one.startswith("what it keeps") for one in changed):
        return "; one instance serves every model, so keep nothing from one call to the next"
    return "; leave what others use as it was"


class Surroundings:
    """What is around, as it is when this is entered; put back when it is left."""

    def __init__(self, *things: Any) -> None:
        self.things = things

    def __enter__(self) -> Surroundings:
        self.settings = _settings()
        self.values = {name: read() for name, (read, _) in self.settings.items()}
        self.functions = [(owner, dict(vars(owner))) for owner in _owners()]
        self.kept = [_kept(thing) for thing in self.things]
        return self

    def __exit__(self, *error: object) -> None:
        for name, (read, write) in self.settings.items():
            if read() != self.values[name]:
                write(self.values[name])
        for owner, name, was in list(self._replaced()):
            if was is None:
                delattr(owner, name)
            else:
                setattr(owner, name, was)

    def changes(self) -> list[str]:
        """What is other than it was, in the words after "changes"."""
        found = [name for name, (read, _) in self.settings.items() if read() != self.values[name]]
        found += [f"{_name(owner)}.{name}" for owner, name, _ in self._replaced()]
        for thing, before in zip(self.things, self.kept, strict=True):
            after = _kept(thing)
            names = [name for name in after if after[name] != before.get(name)]
            found += [f"what it keeps in itself ({name})" for name in names]
        return found

    def _replaced(self) -> Iterator[tuple[Any, str, Any]]:
        """Functions and classes of torch that are others now: where, and what they were; None: they were inherited."""
        for owner, before in self.functions:
            for name, value in list(vars(owner).items()):
                was = before.get(name)
                inherited = was is None and isinstance(owner, type) and hasattr(owner.__base__, name)
                if value is was or _is_torch(value):  # which replaces some functions when more of it is imported
                    continue
                if inherited or callable(was) or isinstance(was, property):
                    yield owner, name, was


def _settings() -> dict[str, Setting]:
    import torch

    settings: dict[str, Setting] = {
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (torch.get_default_device, torch.set_default_device),
        "whether torch keeps gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
        "whether torch is deterministic": (
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        "torch's precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "whether torch looks for anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "the way of products on CUDA": (
            lambda: _flags(torch.backends.cudnn),
            lambda flags: _set_flags(torch.backends.cudnn, flags),
        ),
        "the working directory": (os.getcwd, os.chdir),
        "the environment of processes": (lambda: dict(os.environ), _set_environment),
        "the rights of new files": (_umask, os.umask),
        "which warnings are shown": (_silenced, _unsilence),
        "which logs are shown": (lambda: (logging.root.level, logging.root.manager.disable), _set_logs),
        "how deep calls may go": (sys.getrecursionlimit, sys.setrecursionlimit),
        "the path of imports": (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    }
    for name, number in {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}.items():
        settings[f"what {name} does"] = (partial(signal.getsignal, number), partial(signal.signal, number))
    return settings


def _flags(backend: Any) -> tuple[bool, ...]:
    return backend.enabled, backend.benchmark, backend.deterministic


def _set_flags(backend: Any, flags: tuple[bool, ...]) -> None:
    backend.enabled, backend.benchmark, backend.deterministic = flags


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def _silenced() -> list[Any]:
    """The filters that hide warnings of every kind; those of one kind or one module come with libraries."""
    return [one for one in warnings.filters if one[0] == "ignore" and one[1:] == (None, Warning, None, 0)]


def _unsilence(before: list[Any]) -> None:
    warnings.filters[:] = [one for one in warnings.filters if one in before or one not in _silenced()]  # type: ignore[index]


def _set_logs(levels: tuple[int, int]) -> None:
    logging.root.setLevel(levels[0])
    logging.disable(levels[1])


def _owners() -> list[Any]:
    """The modules and classes of torch whose functions everybody calls."""
    import torch
    from torch import nn

    layers = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    return [torch, torch.Tensor, torch.linalg, torch.optim, torch.utils.data, nn, nn.functional, nn.init, *layers]


def _is_torch(value: Any) -> bool:
    """Whether a function, or what a wrapper around one does, is torch's own."""
    import torch

    code = getattr(value, "__code__", None)
    if code is not None:
        return Path(code.co_filename).is_relative_to(Path(torch.__file__).parent)
    return isinstance(value, type) and value.__module__.partition(".")[0] == "torch"


def _name(owner: Any) -> str:
    within = {"_TensorMeta": "torch.", "type": "torch.nn."}.get(type(owner).__name__, "")
    return f"{within}{owner.__name__}"


def _kept(thing: Any) -> dict[str, tuple[int, str]]:
    """What an instance and its class hold, by name: which objects, and what is in them; but for what is made once."""
    kind = type(thing)
    held = {**_own(kind), **getattr(thing, "__dict__", {})}
    return {
        name: (id(value), _content(value))
        for name, value in held.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def _own(kind: type) -> dict[str, Any]:
    """What the classes of a plugin hold besides functions; not what Python or a library keeps in them."""
    held: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] not in ("builtins", "abc", "torch", "typing", "pydantic"):
            held |= {name: value for name, value in vars(base).items() if not name.startswith(("__", "_abc_"))}
    return held


def _content(value: Any) -> str:
    """How many things a container holds, and the first of them."""
    return f"{len(value)} {SHORT.repr(value)}" if isinstance(value, dict | list | set) else ""
