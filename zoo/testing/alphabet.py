"""A tokenizer of one token a character, for the checks of language models that come without one."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError

if TYPE_CHECKING:
    from zoo.model.model import Model

FIRST = " "  # the character that token 0 stands for
SURROGATES = range(0xD800, 0xE000)  # halves of characters, which are no text
SPECIAL = ("unk_token", "mask_token", "eos_token")  # the last tokens of the vocabulary


def give_processor(model: Model) -> None:
    """Give a model of random weights what it reads prompts with: what its family makes, else a tokenizer of characters.

    A family whose processor is of another kind, so that it cannot save a tokenizer, is left alone.
    """
    from zoo.family.diffusion.family import TextToImageFamily
    from zoo.family.text.family import TextFamily

    family = model.family
    if isinstance(family, TextToImageFamily):
        family.parts(model)
    if not isinstance(family, TextFamily):
        return
    try:
        family.tokenizer(model)  # some families make one
    except RequestError:
        tokenizer = alphabet(family.vocabulary(model))
        with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as folder:
            family.save_processor(tokenizer, Path(folder))
            model.processor = tokenizer


def alphabet(size: int) -> Any:
    """Make a tokenizer of `size` tokens: the characters from the space on, and in the end those with a meaning of their own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    codes = (code for code in range(ord(FIRST), 0x110000) if code not in SURROGATES)
    characters = [chr(code) for code, _ in zip(codes, range(size), strict=False)]
    special = dict(zip(SPECIAL, characters[-len(SPECIAL) :], strict=False))
    vocabulary = {character: number for number, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
