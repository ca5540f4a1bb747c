"""Text generation: one token at a time, streamed as text that is never cut inside a character or a stop string."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, ZooError
from zoo.family.text.chat import FormattedPrompt
from zoo.family.text.readers import names_of, reader_of
from zoo.family.text.sampling import pick, seed_of
from zoo.family.text.shape import frequency_switches
from zoo.family.text.tokens import end_tokens, reads_apart
from zoo.model.health import cause, damage, require_finite_outputs
from zoo.tensors.finite import ends

if TYPE_CHECKING:
    import torch

    from zoo.family.text.family import TextFamily
    from zoo.family.text.options import Sampling
    from zoo.model.model import Model
    from zoo.tensors.batch import Batch


def stream_text(family: TextFamily, model: Model, prompt: Any, how: Sampling) -> Iterator[str]:
    """Check the prompt, then return an iterator over the pieces of text that follow it.

    Raises:
        RequestError: the family cannot read the prompt, or it leaves no room in the model's context.
    """
    ids, first = family.inputs(model, prompt)
    count = min(how.max_new_tokens, _room(family, model, ids))
    return _pieces(family, model, ids, first, count, how, _ends(family, model, prompt))


def write_texts(family: TextFamily, model: Model, prompts: Sequence[Any], how: Sampling) -> list[str]:
    """Continue several prompts together, each as if it were alone: prompt i with the seed `how.seed` + i.

    Raises:
        RequestError: as for one prompt.
    """
    inputs = [family.inputs(model, prompt) for prompt in prompts]
    read = [ids for ids, _ in inputs]
    counts = [min(how.max_new_tokens, _room(family, model, ids)) for ids in read]
    if any(beside for _, beside in inputs) or not _together(family, model, read, max(counts)):
        seeded = [how.model_copy(update={"seed": seed_of(how.seed, i)}) for i in range(len(prompts))]
        return ["".join(stream_text(family, model, prompt, own)) for prompt, own in zip(prompts, seeded, strict=True)]
    texts = [_Text(family, model, ids, how.stop) for ids in read]
    last = [_ends(family, model, prompt) for prompt in prompts]
    answers, done = [""] * len(prompts), [False] * len(prompts)
    steps = next_together(
        model, read, max(counts), temperature=how.temperature, top_p=how.top_p, seed=how.seed, done=done
    )
    for step, tokens in enumerate(steps, 1):
        for i, token in enumerate(tokens):
            if done[i]:
                continue
            done[i] = token in last[i] or step == counts[i]
            if token not in last[i]:
                answers[i] += texts[i].add(token)
                done[i] |= texts[i].stopped
    return [answer + text.rest() for answer, text in zip(answers, texts, strict=True)]


def _ends(family: TextFamily, model: Model, prompt: Any) -> Container[Any]:
    if (own := family.ends(model)) is not None:
        return own
    return end_tokens(model) | set(prompt.ends if isinstance(prompt, FormattedPrompt) else ())


def _room(family: TextFamily, model: Model, ids: list[int]) -> int:
    """How many tokens may follow a prompt; what an encoder reads takes no room of what the decoder writes."""
    context = family.context_length(model)
    room = context - 1 if reads_apart(model) and len(ids) <= context else context - len(ids)
    if room < 1:
        raise RequestError(f"The prompt has {len(ids)} tokens; {model.spec.name} takes {context} in all.")
    return room


def _together(family: TextFamily, model: Model, prompts: Sequence[list[int]], count: int) -> bool:
    """Whether the module can read these prompts in one batch.

    They are of single tokens, it masks what is padding, the longest leaves room for all, and none takes other rotary
    frequencies than another.
    """
    if len(prompts) == 1 or "attention_mask" not in names_of(model) or not isinstance(prompts[0][0], int):
        return False
    shortest, longest = min(map(len, prompts)), max(map(len, prompts)) + count
    if any(shortest <= switch < longest for switch in frequency_switches(model.module)):
        return False
    return reads_apart(model) or longest <= family.context_length(model)


def _pieces(
    family: TextFamily, model: Model, ids: list[int], first: Batch, count: int, how: Sampling, last: Container[Any]
) -> Iterator[str]:
    text = _Text(family, model, ids, how.stop)
    for token in next_tokens(
        model, ids, count, first=first, temperature=how.temperature, top_p=how.top_p, seed=how.seed
    ):
        if token in last:
            break
        if piece := text.add(token):
            yield piece
        if text.stopped:
            return
    if rest := text.rest():
        yield rest


class _Text:
    """A text that grows token by token, and gives away what can no longer change."""

    def __init__(self, family: TextFamily, model: Model, ids: list[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop, self.stopped = family.tokenizer(model), list(stop), False
        self.lead = [] if reads_apart(model) else _lead(self.tokenizer, ids)
        self.skipped = len(self.tokenizer.decode(self.lead, skip_special_tokens=True)) if self.lead else 0
        self.new: list[int] = []
        self.shown = 0

    def add(self, token: int) -> str:
        """Take one more token; return the text that is certain now, which ends before a stop string."""
        self.new.append(token)
        text = self._decoded()
        ended = min((at for at in (text.find(s) for s in self.stop) if at >= 0), default=-1)
        self.stopped = ended >= 0
        return self._given(text, ended if self.stopped else len(text) - _unfinished(text, self.stop))

    def rest(self) -> str:
        """The text held back so far, where no more tokens come."""
        return "" if self.stopped else self._given(text := self._decoded(), len(text))

    def _given(self, text: str, end: int) -> str:
        piece = text[self.shown : end]
        self.shown = max(self.shown, end)
        return piece

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.lead + self.new, skip_special_tokens=True))[self.skipped :]


def _lead(tokenizer: Any, ids: list[int]) -> list[int]:
    """The prompt's last whole characters, decoded along: many tokenizers drop the space before the first word they decode."""
    ends = (ids[-count:] for count in range(1, 9))
    return next((end for end in ends if "�" not in tokenizer.decode(end, skip_special_tokens=True)), [])


def next_tokens(
    model: Model,
    ids: list[int],
    count: int,
    *,
    first: Batch | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to `count` token ids after `ids`, with a cache; sampling draws from its own generator.

    Args:
        first: what the module takes beside the ids on their pass (images); later passes read it from the cache.

    Raises:
        RequestError: the module keeps no cache of what it read, as encoders do not.
        ZooError: the model gives nan or infinity; names the tensor or the layer that is to blame.
    """
    for (token,) in next_together(model, [ids], count, first=first, temperature=temperature, top_p=top_p, seed=seed):
        yield token


def greedy(
    model: Model,
    prompts: Sequence[list[int]],
    count: int,
    *,
    first: Batch,
    end: int,
    pad: int = 0,
    of: Sequence[str] = (),
) -> list[list[int]]:
    """Continue several prompts together: up to `count` likeliest tokens each, without `end`.

    Args:
        of: what to call each prompt in an error.

    Raises:
        ZooError: the model gives nan or infinity; names the tensor or the layer that is to blame.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    for tokens in next_together(model, prompts, count, first=first, pad=pad, done=done, of=of):
        for i, token in enumerate(tokens):
            done[i] |= token == end
            if not done[i]:
                answers[i].append(token)
    return answers


def next_together(
    model: Model,
    prompts: Sequence[list[int]],
    count: int,
    *,
    first: Batch | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    pad: int = 0,
    done: list[bool] | None = None,
    of: Sequence[str] = (),
) -> Iterator[list[int]]:
    """Yield the next token of every prompt, up to `count` times; prompt i draws from a generator of its own, of seed + i.

    Args:
        first: what the module takes beside the ids on their pass (images).
        pad: the token that fills shorter prompts up; what it is makes no difference.
        done: marked by the caller where a text has ended: its tokens mean nothing then, and it ends when all have.
        of: what to call each prompt in an error.

    Raises:
        RequestError: the module keeps no cache of what it read, as encoders do not.
        ZooError: the model gives nan or infinity; names the tensor or the layer that is to blame.
    """
    import torch

    done = [False] * len(prompts) if done is None else done
    draws = [torch.Generator().manual_seed(seed_of(seed, i)) for i in range(len(prompts))]
    reader = reader_of(model, prompts, first or {}, pad)
    looked = False
    for _ in range(count):
        logits_BV = reader.logits()
        lowest, highest = ends(logits_BV)
        if not math.isfinite(highest) or (lowest == -math.inf and not looked):
            _require_meant(model, logits_BV, reader.seen(), of)
            looked = True
        tokens = [pick(logits_V, temperature, top_p, draw) for logits_V, draw in zip(logits_BV, draws, strict=True)]
        yield tokens
        if all(done):
            return
        reader.append(tokens, done)


def _require_meant(model: Model, logits_BV: torch.Tensor, batch: Batch, of: Sequence[str]) -> None:
    """Refuse logits of nan or infinity; -infinity in a sound model means a token that cannot come."""
    highest_B = logits_BV.amax(-1)
    if of:
        require_finite_outputs(model, highest_B, batch, of=of)
    if not math.isfinite(ends(highest_B)[1]) or damage(model):
        read = batch.get("decoder_input_ids", batch["input_ids"])
        raise ZooError(f"{model.spec.name} gives nan or infinity after {read.shape[1]} tokens: {cause(model, batch)}.")


def _unfinished(text: str, stop: list[str]) -> int:
    """How many characters at the end may still change: half a character, or the beginning of a stop string."""
    whole = text.rstrip("�")
    return len(text) - len(whole) + max((n for s in stop for n in range(1, len(s)) if whole.endswith(s[:n])), default=0)
