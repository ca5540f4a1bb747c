"""Chats: messages become a prompt by the chat template of the model's own tokenizer.

A template is a Jinja program, and comes from anybody. transformers renders it in Jinja's immutable sandbox, which keeps it
from files and from Python's insides but lets it loop and repeat without end. So it runs in a child process with little time
and memory, which hands back text or a reason and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, nearest, plain
from zoo.system.unicode import require_unicode

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset, Sample

TOGETHER = 32  # records that one child process writes
ROLES = ("system", "user", "assistant", "tool", "developer")
SECONDS, PATIENCE = 2, 20  # of processor time; of waiting for it
BYTES = 2**28  # beyond what the process has


def render(tokenizer: Any, messages: Any, *, name: str, most: int) -> str:
    """Write messages as the chat template of a tokenizer says, up to where the model answers.

    Where the last message is the assistant's own, the model goes on with it.

    Args:
        name: what to call the model in an error.
        most: how many characters the model can read at all.

    Raises:
        RequestError: the messages are no messages, or there is no template, or it refuses them, fails or takes too much.
    """
    check_messages(messages)
    if not has_template(tokenizer):
        raise RequestError(
            f"{name} has no chat template, as models that only continue text have none: give it the text itself as its prompt, "
            "or set model.processor.chat_template."
        )
    return _rendered(lambda: _written(tokenizer, messages), name=name, most=most)


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def as_chats(tokenizer: Any, data: Dataset, *, name: str) -> Dataset:
    """Write records as chats, as the chat template says, for what only reads them.

    The prompt of a record is the user's message and its text the answer; a text alone is the user's message.

    Raises:
        RequestError: there is no template, or it refuses a record, fails or takes too much; names the record.
    """
    from zoo.data.dataset import Dataset, Sample

    if not has_template(tokenizer):
        raise RequestError(f"{name} has no chat template, so no text can be written as a chat: leave out chat = true.")
    chats: list[Sample] = []
    for start in range(0, len(data), TOGETHER):
        group = list(data[start : start + TOGETHER])
        try:
            texts = _chats(tokenizer, group, name=name)
        except RequestError:  # of one of them, or of all of them together in the time of one
            texts = [text for sample in group for text in _named(tokenizer, sample, name=name)]
        chats += [Sample({"text": text}, sample.where) for text, sample in zip(texts, group, strict=True)]
    return Dataset(data.name, chats)


def _named(tokenizer: Any, sample: Sample, *, name: str) -> list[str]:
    from zoo.data.dataset import naming_record

    with naming_record(sample):
        return _chats(tokenizer, [sample], name=name)


def _chats(tokenizer: Any, samples: Sequence[Sample], *, name: str) -> list[str]:
    """Chats of several records, written by one child process."""
    talks = [_messages(sample) for sample in samples]
    most = sum(6 * len(message["content"]) + 2**16 for talk in talks for message in talk)  # of JSON
    texts: list[str] = json.loads(
        _rendered(lambda: json.dumps([_written(tokenizer, talk) for talk in talks]), name=name, most=most)
    )
    return texts


def _messages(sample: Sample) -> list[dict[str, str]]:
    if sample.prompt:
        return [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.text}]
    return [{"role": "user", "content": sample.text}]


def _written(tokenizer: Any, messages: Any) -> str:
    goes_on = messages[-1]["role"] == "assistant"
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
    )


def _rendered(work: Callable[[], str], *, name: str, most: int) -> str:
    """What a template made in a child process, or its failure in a sentence."""
    kind, text = _confined(work, most)
    if kind == "text":
        return text
    why = plain(text)[:200].rstrip(". ")
    raise RequestError(
        {
            "length": f"The chat has {text} characters; {name} reads at most {most:,}.",
            "TemplateError": f"The chat template of {name} refuses these messages: {why}.",
            "SecurityError": f"The chat template of {name} tries what no template may: {why}.",
            "UndefinedError": f"The chat template of {name} needs what these messages lack: {why}.",
            "": f"The chat template of {name} was stopped: it takes more than {SECONDS} seconds or {BYTES >> 20} MB.",
        }.get(kind, f"The chat template of {name} fails: {why or kind}.")
    )


def check_messages(messages: Any) -> None:
    """Refuse what is no list of messages.

    Raises:
        RequestError: names the first message that is wrong.
    """
    shape = '{"role": "user", "content": "Hello"}'
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise RequestError(f"messages is a {type(messages).__name__}; give a list of messages such as {shape}.")
    if not messages:
        raise RequestError(f"messages is empty; give at least one message, such as {shape}.")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise RequestError(f"Message {number} is a {type(message).__name__}; a message looks like {shape}.")
        for key in ("role", "content"):
            if key not in message:
                raise RequestError(f"Message {number} has no {key!r}; a message looks like {shape}.")
            if not isinstance(message[key], str):
                raise RequestError(f"Message {number}: its {key} is a {type(message[key]).__name__}, not text.")
        if message["role"] not in ROLES:
            raise RequestError(
                f"Message {number}: {message['role'][:40]!r} is no role.{nearest(message['role'], ROLES)} Roles: {', '.join(ROLES)}."
            )
        require_unicode(message["content"], f"Message {number}")


def _confined(work: Callable[[], str], most: int) -> tuple[str, str]:
    """Run `work` in a child that can write no file, with bounds on its time, its memory and the length of what it returns.

    Returns ("text", what it returned), ("length", how long that was) or (kind of error, what it says); the kind is "" where
    the child was stopped.
    """
    if not hasattr(os, "fork"):  # Windows: the sandbox alone
        return _outcome(work, most)
    import warnings

    import psutil

    memory = psutil.Process().memory_info().vms + BYTES
    read, write = os.pipe()
    with warnings.catch_warnings():
        # of threads that the child does without: it runs Python alone
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            _limit(memory)
            kind, text = _outcome(work, most)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(f"{kind}\n{text}".encode("utf-8", "replace"))
        finally:
            os._exit(0)
    os.close(write)
    try:
        content = _read(read, most=4 * most + 2**16)
    finally:
        _end(child)
        os.close(read)
    kind, _, text = content.decode("utf-8", "replace").partition("\n")
    return ("", "") if kind == "MemoryError" else (kind, text)


def _outcome(work: Callable[[], str], most: int) -> tuple[str, str]:
    try:
        text = work()
    except Exception as error:
        return type(error).__name__, str(error)[:2000]
    return ("text", text) if len(text) <= most else ("length", f"{len(text):,}")


def _limit(memory: int) -> None:
    """Bound this process, a child that only renders."""
    import gc
    import resource

    gc.disable()  # what the parent made is the parent's to take apart
    bounds = {"RLIMIT_AS": memory, "RLIMIT_CPU": SECONDS, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
    for name, bound in bounds.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        low = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (low, low))


def _read(pipe: int, *, most: int) -> bytes:
    """What the child says, until it has said all, said too much or is not heard of any longer."""
    import select
    import time

    content, until = b"", time.monotonic() + PATIENCE
    while len(content) <= most and (left := until - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            return b""
        piece = os.read(pipe, 2**16)
        if not piece:
            return content
        content += piece
    return b""


def _end(child: int) -> None:
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may have been waited for elsewhere
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@dataclass(frozen=True)
class FormattedPrompt:
    """A prompt in a format of the model's own (a chat, a gap to fill), which brings its special tokens along."""

    text: str
    ends: tuple[int, ...] = ()  # tokens of the format that end the answer, beside those that end every text
