"""Text as tokens of bytes: cut by BPE, spelled in slots, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stages import tokenizer as words
from zoo_slm.byte_tokenizer import ByteTokenizer
from zoo_slm.models.super_tiny import SuperTinyConfig, SuperTinyForCausalLM

from zoo.errors import RequestError

pytestmark = pytest.mark.quick

TEXTS = ["the cat and the other cat", "Grüße, 猫! 🐈 <tab>\t</tab>\n\n", "  spaces  ", "\x00\x7f\u00ad\u0100"]
END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE tokenizer as GPT-2's is, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the cat and the other cat, international"] * 20, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False)


def test_a_piece_becomes_its_bytes_and_padding(bpe: Any) -> None:
    tokens = ByteTokenizer(bpe, slots=6)("the cat")["input_ids"]
    assert tokens == [(116, 104, 101, 256, 256, 256), (32, 99, 97, 116, 256, 256)]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(bpe: Any, text: str) -> None:
    tokenizer = ByteTokenizer(bpe)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_has_its_value(bpe: Any) -> None:
    """A character of several pieces is spelled in its own bytes, not in those of a replacement."""
    tokens = ByteTokenizer(bpe, slots=2)("🐈")["input_ids"]
    assert [token[0] for token in tokens] == list("🐈".encode())


def test_a_long_piece_loses_what_has_no_slot(bpe: Any) -> None:
    tokenizer = ByteTokenizer(bpe)
    assert bpe.tokenize(" international") == ["Ġinternational"]  # 14 bytes
    assert tokenizer.decode(tokenizer(" international")["input_ids"]) == " internation"


def test_the_end_of_text_is_a_token_of_its_own(bpe: Any) -> None:
    tokenizer = ByteTokenizer(bpe, slots=3)
    tokens = tokenizer(f"a{END_OF_TEXT}b")["input_ids"]
    assert tokens == [(97, 256, 256), (257, 256, 256), (98, 256, 256)]
    assert tokens[1] == tokenizer.end
    assert tokenizer.decode(tokens) == "ab"


def test_places_are_those_of_characters(bpe: Any) -> None:
    found = ByteTokenizer(bpe)("the cat", return_offsets_mapping=True)
    assert found["offset_mapping"] == [(0, 3), (3, 7)]


def test_it_is_saved_as_json_and_read_again(bpe: Any, tmp_path: Path) -> None:
    ByteTokenizer(bpe, slots=7).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    again = ByteTokenizer.from_pretrained(tmp_path)
    assert again.slots == 7
    for text in TEXTS:
        assert again(text) == ByteTokenizer(bpe, slots=7)(text)


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"needs a tokenizer whose pieces are bytes, such as GPT-2's; this one's are not\."
    ):
        ByteTokenizer(words())


def test_a_model_continues_a_batch_of_texts(bpe: Any) -> None:
    """Texts of different lengths together get what each gets alone."""
    tokenizer = ByteTokenizer(bpe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = (
            SuperTinyForCausalLM(
                SuperTinyConfig(
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    head_dim=8,
                    tie_word_embeddings=False,
                    byte_context_window=12,
                    byte_embedding_dim=16,
                    byte_heads=4,
                    embedder_blocks=2,
                    decoder_blocks=1,
                    initializer_range=0.3,
                )
            )
            .eval()
            .double()
        )
    texts = ["the cat and the other", "cat"]
    together = model.generate(**tokenizer.batch(texts), max_new_tokens=3)
    for text, found in zip(texts, together, strict=True):
        alone = model.generate(**tokenizer.batch([text]), max_new_tokens=3)
        assert torch.equal(found[-3:], alone[0, -3:])
