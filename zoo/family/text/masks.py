"""Masked language models: the likeliest words in place of each mask of a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError
from zoo.model.health import require_finite_outputs

if TYPE_CHECKING:
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model

Words = list[tuple[str, float]]


def fills(family: TextFamily, model: Model, prompt: str, count: Any) -> Iterator[Words]:
    """Check the text, then return an iterator over its masks: the likeliest words of each, with their probabilities.

    Raises:
        RequestError: the model fills in no words, or the text has no mask or is too long.
    """
    name, tokenizer = model.spec.name, family.tokenizer(model)
    if model.spec.task != "masked-lm":
        raise RequestError(f"{name} is a {model.spec.task} model; only masked-lm models fill in words.")
    require_count(count)
    if tokenizer.mask_token_id is None:
        raise RequestError(f"{name} fills in no words: its tokenizer has no mask token.")
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    family.require_known(model, ids)
    if tokenizer.mask_token_id not in ids:
        raise RequestError(
            f"{name} fills in words, and the prompt leaves none out: write {tokenizer.mask_token} in place of one."
        )
    if len(ids) > (most := family.context_length(model)):
        raise RequestError(f"The prompt has {len(ids)} tokens; {name} takes {most} in all.")
    return _likeliest(family, model, ids, count)


def require_count(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"count = {count!r} is not a number of words from 1.")


def _likeliest(family: TextFamily, model: Model, ids: list[int], count: int) -> Iterator[Words]:
    """Legend: T tokens, V vocabulary."""
    import torch

    tokenizer = family.tokenizer(model)
    ids_T = torch.tensor(ids, device=model.device)
    batch = {"input_ids": ids_T[None], "attention_mask": torch.ones_like(ids_T)[None]}
    with torch.inference_mode():
        logits_TV = family.forward(model, batch)[0].float()
    for position in (at for at, token in enumerate(ids) if token == tokenizer.mask_token_id):
        require_finite_outputs(model, logits_TV[position].amax(-1, keepdim=True), batch, of="the prompt")
        best = logits_TV[position].softmax(-1).topk(min(count, logits_TV.shape[-1]))
        words = [_word(tokenizer, token) for token in best.indices.tolist()]
        yield list(zip(words, best.values.tolist(), strict=True))


def _word(tokenizer: Any, token: int) -> str:
    """A token as it reads in a text; white space and the like spelled out."""
    text = str(tokenizer.decode([token]))
    return text.strip() if text.strip().isprintable() and text.strip() else repr(text)


def shown(candidates: Iterator[Words]) -> Iterator[str]:
    """One word a line; what is for another mask comes after an empty line."""
    for number, words in enumerate(candidates):
        yield ("\n\n" if number else "") + "\n".join(f"{100 * chance:5.1f} %  {word}" for word, chance in words)
