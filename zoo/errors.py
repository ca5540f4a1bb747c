"""Every error a user can meet, and the sentence it prints.

ZooError                 the work failed (exit code 1)
├── ArtifactError        a saved model is damaged, incomplete or of another format
├── WeightsUnavailable   the weights are not on this machine and cannot be fetched
├── PluginError          a plugin cannot be used
└── RequestError         the request was wrong (exit code 2)
    ├── UnknownName      no model, stage, option or target of that name
    ├── RecipeError      a recipe cannot be read or does not fit its stages
    ├── DataError        data is missing, empty or malformed
    ├── Refused          a stage cannot follow what came before
    └── OutputError      the output cannot be written, or holds something else
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NEAR = 0.65  # share of letters that two names have in common, in order, of which one may be meant for the other
LONGEST = 500  # characters that another library's error may take in a sentence of ours


_commanded: ContextVar[bool] = ContextVar("commanded", default=False)


@contextmanager
def on_command_line() -> Iterator[None]:
    """What is asked meanwhile is asked by a command: messages spell arguments as commands do."""
    token = _commanded.set(True)
    try:
        yield
    finally:
        _commanded.reset(token)


def spelled(python: str, command: str) -> str:
    """An argument as whoever is asking spells it: "force=True" in Python, "--force" on the command line."""
    return command if _commanded.get() else python


class ZooWarning(UserWarning):
    """The work goes on, but not with all that was there; the message is one sentence a person can act on."""


class ZooError(Exception):
    """The work failed; the message is one sentence a person can act on."""

    exit_code = 1


class ArtifactError(ZooError):
    """A saved model is damaged, incomplete, or written in a format this version does not read."""


class WeightsUnavailable(ZooError):
    """The weights are neither packaged nor cached here, and cannot be fetched."""


class PluginError(ZooError):
    """A plugin failed to import, to register, or lacks something it declares."""


class RequestError(ZooError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class UnknownName(RequestError):
    """No model, stage, option or target has that name."""


class RecipeError(RequestError):
    """A recipe cannot be read, or a value in it does not fit."""


class DataError(RequestError):
    """A data source is missing, empty, or holds a bad record."""


class Refused(RequestError):
    """A stage cannot follow what came before; the message says what would help."""


class OutputError(RequestError):
    """The output cannot be written, or holds something that is not ours to replace."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the choice nearest to `name`, or an empty string."""
    asked, known = name.casefold(), {choice.casefold(): choice for choice in reversed(list(choices))}
    close = difflib.get_close_matches(asked, known, n=1, cutoff=NEAR) if asked else []
    if not close and len(asked) > 2:  # a part of it: "int8" of "quantize.int8", "perplex" of "perplexity"
        close = [choice for choice in known if choice.startswith(asked) or choice.endswith(f".{asked}")][:1]
    return f" Did you mean {known[close[0]]!r}?" if close else ""


def listed(words: Iterable[str], last: str = "and") -> str:
    """Join words as a sentence does: "a, b and c"."""
    *most, end = words
    return f"{', '.join(most)} {last} {end}" if most else end


def one_line(error: BaseException) -> str:
    """Say in one line what `error` says, with its type where that is the only information."""
    text = plain(_said(error))
    if isinstance(error, ZooError):
        # what helps is said at the end
        return text if len(text) <= 2 * LONGEST else f"{text[:LONGEST]} ... {text[-LONGEST // 2 :]}"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def reason(error: BaseException, most: int = 160) -> str:
    """Say why, for the middle of a sentence: what an error says first, without its full stop; with its type for an index or a key."""
    line = next((line for line in _said(error).splitlines() if line.strip()), "")
    text = plain(line)[:most].rstrip(" .")
    return f"{type(error).__name__}: {text}".rstrip(": ") if isinstance(error, LookupError) or not text else text


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # it cannot even say what it is
        return ""


def plain(text: str) -> str:
    """Return a text in one line, what a terminal would obey rather than show spelled out: it may be from anybody's file."""
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
