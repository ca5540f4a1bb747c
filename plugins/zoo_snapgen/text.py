"""A word-level tokenizer for a small, fixed vocabulary of captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")  # ids 0 to 3


def word_tokenizer(words: Sequence[str], *, length: int) -> Any:
    """Make a fast tokenizer of the transformers kind: lower-case words, one token each, between <start> and <end>.

    Case, accents and punctuation are ignored; any other word becomes <unk>. `length` counts the two marks.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = (*SPECIAL, *words)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    pad, unknown, start, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        model_max_length=length,
    )
