"""The tokenizer of the packaged model: bytes, a few merges for its questions, and the special tokens of H2OVL.

It is made from this file alone, so it is the same everywhere. The published models use Llama's 32000 tokens instead,
followed by the same special tokens in the same order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

SPECIAL = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<|end|>",
)
WORDS = ("<|prompt|>", "<|answer|>")  # not special: here one token each, in the published tokenizer plain text
QUESTIONS = ("What digit is this?", "What does it say?", "\nWhat")
SIZE = 288
IMAGE_TOKEN = SIZE - len(WORDS) - len(SPECIAL) + SPECIAL.index("<IMG_CONTEXT>")


@cache
def tokenizer_json() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(SPECIAL) - len(WORDS),
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
    )
    tokenizer.train_from_iterator(QUESTIONS, trainer=trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in WORDS])
    text: str = tokenizer.to_str()
    return text


def reading_tokenizer() -> Any:
    """Return a fresh tokenizer of `SIZE` tokens; the bytes make every text encodable."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()),
        bos_token="<s>",
        eos_token="<|end|>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=[text for text in SPECIAL if text != "<|end|>"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
