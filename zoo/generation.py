"""Text generation: one token at a time, streamed as text that is never cut inside a character or a stop string."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError, ZooError
from zoo.finite import cause, damage, ends, require_finite_outputs

if TYPE_CHECKING:
    import torch

    from zoo.family import Batch, TextFamily
    from zoo.model import Model


def stream_text(
    family: TextFamily, model: Model, prompt: Any, *, max_new_tokens: int = 128, temperature: float = 0.0, top_p: float = 1.0,
    seed: int = 0, stop: Sequence[str] = (),
) -> Iterator[str]:
    """Check the request, then return an iterator over the pieces of text that follow `prompt`.

    Raises:
        RequestError: the family cannot read the prompt, it leaves no room in the model's context, or an option is out of range.
    """
    for name, value in {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}.items():
        whole = name == "max_new_tokens"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise RequestError(f"{name} = {value!r} is not a {'whole ' if whole else ''}number.")
    if max_new_tokens < 1 or not temperature >= 0 or not 0 < top_p <= 1:
        raise RequestError("max_new_tokens must be at least 1, temperature at least 0, and top_p in (0, 1].")
    require_seed(seed)
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
        raise RequestError("A stop string is some text; an empty one would stop before the first character.")
    ids, first = family.inputs(model, prompt)
    room = family.context_length(model) - len(ids)
    if room < 1:
        raise RequestError(f"The prompt has {len(ids)} tokens; {model.spec.name} takes {family.context_length(model)} in all.")
    return _pieces(family, model, ids, first, min(max_new_tokens, room), float(min(temperature, 1e300)), top_p, seed, list(stop))


def require_seed(seed: Any) -> None:
    """Refuse what no generator takes as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed = {seed!r} is not a whole number.")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seed {seed} is not between 0 and 2**63.")


def _pieces(
    family: TextFamily, model: Model, ids: list[int], first: Batch, count: int, temperature: float, top_p: float, seed: int,
    stop: list[str],
) -> Iterator[str]:
    tokenizer = family.tokenizer(model)
    lead = _lead(tokenizer, ids)
    skipped = len(tokenizer.decode(lead, skip_special_tokens=True))

    def decoded() -> str:
        return str(tokenizer.decode(lead + new, skip_special_tokens=True))[skipped:]

    new: list[int] = []
    shown = 0
    for token in next_tokens(model, ids, count, first=first, temperature=temperature, top_p=top_p, seed=seed):
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
        text = decoded()
        ended = min((at for at in (text.find(s) for s in stop) if at >= 0), default=-1)
        if ended >= 0:
            if ended > shown:
                yield text[shown:ended]
            return
        safe = len(text) - _unfinished(text, stop)
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    if rest := decoded()[shown:]:
        yield rest


def _lead(tokenizer: Any, ids: list[int]) -> list[int]:
    """The prompt's last whole characters, decoded along: many tokenizers drop the space before the first word they decode."""
    ends = (ids[-count:] for count in range(1, 9))
    return next((end for end in ends if "�" not in tokenizer.decode(end, skip_special_tokens=True)), [])


def next_tokens(
    model: Model, ids: list[int], count: int, *, first: Batch | None = None, temperature: float = 0.0, top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to `count` token ids after `ids`, with a key-value cache; sampling draws from its own generator.

    Args:
        first: what the module takes beside the ids on their pass (images); later passes read it from the cache.

    Raises:
        ZooError: the model gives nan or infinity; names the tensor or the layer that is to blame.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    step: torch.Tensor = torch.tensor([ids], device=model.device)
    cache: Any = None
    beside = first or {}
    read, looked = list(ids), False
    for _ in range(count):
        with torch.inference_mode():
            out = model.module(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1, **beside)
        cache = getattr(out, "cache", None)
        if cache is None:
            raise RequestError(f"{type(model.module).__name__} returns no cache of the tokens it read, so it cannot be generated from.")
        logits_V = out.logits[0, -1].float()
        lowest, highest = ends(logits_V)
        if not math.isfinite(highest) or (lowest == -math.inf and not looked):
            _require_meant(model, highest, {"input_ids": torch.tensor([read], device=model.device), **(first or {})})
            looked = True
        token = _pick(logits_V, temperature, top_p, generator)
        yield token
        read.append(token)
        beside = {}
        step = torch.tensor([[token]], device=model.device)


def _require_meant(model: Model, highest: float, batch: Batch) -> None:
    """Refuse logits of nan or infinity; -infinity in a sound model means a token that cannot come."""
    if not math.isfinite(highest) or damage(model):
        raise ZooError(f"{model.spec.name} gives nan or infinity after {batch['input_ids'].shape[1]} tokens: {cause(model, batch)}.")


def greedy(
    model: Model, prompts: Sequence[list[int]], count: int, *, first: Batch, end: int, pad: int = 0, of: Sequence[str] = ()
) -> list[list[int]]:
    """Continue several prompts together, padded on the left: up to `count` likeliest tokens each, without `end`.

    Args:
        of: what to call each prompt in an error.

    Raises:
        ZooError: the model gives nan or infinity; names the tensor or the layer that is to blame.
    """
    import torch

    longest = max(len(ids) for ids in prompts)
    step_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=model.device)
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    cache, beside, asked = None, first, {"input_ids": step_BT, "attention_mask": mask_BT, **first}
    found: list[torch.Tensor] = []
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(count):
        with torch.inference_mode():
            out = model.module(
                input_ids=step_BT, attention_mask=mask_BT, cache=cache, use_cache=True, logits_to_keep=1, **beside
            )
        cache, beside = out.cache, {}
        require_finite_outputs(model, out.logits[:, -1].float().amax(-1), asked, of=of or "the prompts")
        step_BT = out.logits[:, -1:].float().argmax(-1)
        found.append(step_BT[:, 0])
        ended_B |= step_BT[:, 0] == end
        if bool(ended_B.all()):
            break
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1)
    answers: list[list[int]] = torch.stack(found, dim=1).tolist()
    return [ids[: ids.index(end)] if end in ids else ids for ids in answers]


def _pick(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Greedy at temperature 0, otherwise nucleus sampling (Holtzman et al. 2020, 1904.09751, section 3.1)."""
    import torch

    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = (logits_V - logits_V.max()).cpu().double() / temperature  # at most 0: no temperature is too low
    chances_V, order_V = torch.softmax(scaled_V, -1).sort(descending=True, stable=True)
    chances_V = chances_V.masked_fill(chances_V.cumsum(-1) - chances_V >= top_p, 0.0)
    return int(order_V[torch.multinomial(chances_V, 1, generator=generator)])


def _unfinished(text: str, stop: list[str]) -> int:
    """How many characters at the end may still change: half a character, or the beginning of a stop string."""
    whole = text.rstrip("�")
    return len(text) - len(whole) + max((n for s in stop for n in range(1, len(s)) if whole.endswith(s[:n])), default=0)
