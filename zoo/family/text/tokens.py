"""Tokens of language models: where a text begins and ends, and whether two tokenizers agree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError
from zoo.system.unicode import require_unicode

if TYPE_CHECKING:
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model

LONGEST_TOKEN = 64  # characters; text of that many a window holds at least one window
PADDING = 1024  # rows by which the tables of one tokenizer may differ, while no tokenizer is here to compare


def require_text(prompt: Any) -> None:
    if prompt and not isinstance(prompt, str):
        raise RequestError(f"The prompt is of type {type(prompt).__name__}: pass some text, or a list of texts.")
    if not prompt:
        raise RequestError("The prompt is empty: pass some text to continue.")
    require_unicode(prompt, "The prompt")


def begun(prefix: list[int], ids: list[int]) -> list[int]:
    """`ids` after the tokens that a text begins with, unless they begin with them already."""
    return ids if ids[: len(prefix)] == prefix else prefix + ids


def spoken(tokenizer: Any) -> Iterator[str]:
    """Texts of which a tokenizer knows one: of some languages, and of what is none (DNA), it knows no "a" and no "."."""
    yield from ("a", "0", ".")
    special = set(tokenizer.all_special_ids)
    for number in islice((number for number in range(len(tokenizer)) if number not in special), 256):
        yield tokenizer.decode([number]).strip()


def answer(family: TextFamily, model: Model, prompt: str, text: str) -> tuple[list[Any], list[tuple[int, int]]]:
    """Tokenise a text as it stands after a prompt, with nothing between: ids, and the span of its characters each covers.

    Alone, many tokenizers begin it with a space (Llama's). What a token would join to the end of the prompt stays apart
    from it, as it does when the prompt is given and an answer generated.
    """
    for lead in (prompt, "\n") if prompt else ():
        before, covered = family.tokens(model, lead)
        ids, spans = family.tokens(model, lead + text)
        if (ids[: len(before)], spans[: len(before)]) == (before, covered):
            moved = [(max(0, start - len(lead)), max(0, end - len(lead))) for start, end in spans[len(before) :]]
            return ids[len(before) :], moved
    return family.tokens(model, text)


def differing_vocabulary(
    student: Model,
    teacher: Model,
    tables: tuple[int, int],
    *,
    begin: str = "distill compares distributions over one vocabulary",
    role: str = "the teacher",
    remedy: str = "Choose a teacher with the same tokenizer.",
) -> str:
    """Say which tokens a student and its teacher do not share; "" where none, or where a tokenizer is not known yet.

    One tokenizer may have tables of two lengths, since publishers pad them (Qwen2.5: 151,936 rows, from 7B on 152,064).
    """
    names = (student.spec.name, f"{role} {teacher.spec.name}")
    both = [model.processor for model in (student, teacher)]
    if not all(hasattr(processor, "get_vocab") for processor in both):
        if abs(tables[0] - tables[1]) < PADDING:
            return ""
        return f"{begin}: {names[0]} has {tables[0]} tokens, {names[1]} {tables[1]}. {remedy}"
    mine, theirs = ({number: token for token, number in processor.get_vocab().items()} for processor in both)
    number = next((number for number in sorted(mine.keys() & theirs.keys()) if mine[number] != theirs[number]), None)
    if number is not None:
        return (
            f"{begin}: token {number} is {mine[number]!r} to {names[0]} and {theirs[number]!r} to {names[1]}. {remedy}"
        )
    if tables[0] == tables[1]:
        return ""
    if alone := sorted(mine.keys() ^ theirs.keys()):
        owner, other = names if alone[0] in mine else names[::-1]
        return f"{begin}: token {alone[0]} ({(mine | theirs)[alone[0]]!r}) is one of {owner}, and none of {other}. {remedy}"
    if max(mine) >= min(tables):
        short = names[tables.index(min(tables))]
        return f"{begin}: the tokenizer has tokens up to {max(mine)}, and the table of {short} {min(tables)} rows. {remedy}"
    return ""


def start_token(model: Model) -> int:
    """The token with which the decoder of a seq2seq model begins."""
    tokens = [model.spec.config.get(name) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")]
    return next((int(token) for token in tokens if token is not None), 0)


def end_tokens(model: Model) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the config and the generation config (a chat's end of turn)."""
    generation_config = getattr(model.module, "generation_config", None)
    own = getattr(getattr(model.module, "config", None), "eos_token_id", None)
    named = getattr(generation_config, "eos_token_id", None)
    ends = [getattr(model.processor, "eos_token_id", None), model.spec.config.get("eos_token_id")]
    if named != own:  # else it repeats the config, or what its class takes where a checkpoint names none
        ends.append(named)
    return {
        int(token)
        for some in ends
        if some is not None
        for token in (some if isinstance(some, list | tuple) else [some])
    }


def reads_apart(model: Model) -> bool:
    """Whether an encoder reads the prompt and a decoder writes the answer."""
    return bool(getattr(getattr(model.module, "config", None), "is_encoder_decoder", False))
