"""The tokenizer of byte-level models: a BPE tokenizer says where to cut, and the bytes of each piece are what is read.

After Super Tiny Language Models (2405.14159), whose pieces are those of GPT-2: each becomes its UTF-8 bytes in 12 slots,
cut or filled up with 256; 257 is the end of text. A piece of more bytes than slots loses the rest, as it does there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError

if TYPE_CHECKING:
    import torch

PAD, END = 256, 257  # byte values are 0 to 255
SLOTS = "byte_slots"  # in tokenizer_config.json, beside what the BPE tokenizer says of itself

Token = tuple[int, ...]  # one value for each slot


def _alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one visible character: itself, or one of the first after 255 (GPT-2, section 2.2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{chr(byte): byte for byte in visible}, **{chr(256 + n): byte for n, byte in enumerate(hidden)}}


class ByteTokenizer:
    """Text to tokens of `slots` bytes each, and back.

    `bpe` is a fast tokenizer of the transformers kind whose pieces are bytes (GPT-2's, or one of `vocabulary.bpe`).

    Raises:
        RequestError: it is of another kind.
    """

    bos_token_id = cls_token_id = None  # which others of the transformers kind may have

    def __init__(self, bpe: Any, *, slots: int = 12) -> None:
        backend = getattr(bpe, "backend_tokenizer", None)
        if type(getattr(backend, "decoder", None)).__name__ != "ByteLevel":
            raise RequestError(
                "A byte-level model needs a tokenizer whose pieces are bytes, such as GPT-2's; this one's are not."
            )
        self.bpe, self.slots = bpe, slots
        self.pad: Token = (PAD,) * slots
        self.end: Token = (END, *self.pad[1:])
        self._alphabet, self._added = _alphabet(), bpe.get_added_vocab()  # added tokens are written as they are
        self.eos_token_id = self.end
        self._known: dict[int, Token] = {}  # pieces seen so far

    def __call__(self, text: str | Sequence[str], *, return_offsets_mapping: bool = False, **_: Any) -> dict[str, Any]:
        """Return `input_ids`, one list of tokens for each text, and with `return_offsets_mapping` the characters each covers."""
        found = self.bpe(text, add_special_tokens=False, return_offsets_mapping=return_offsets_mapping, verbose=False)
        ids = found["input_ids"]
        spelled = self.spell(ids) if isinstance(text, str) else [self.spell(some) for some in ids]
        return {"input_ids": spelled, **({"offset_mapping": found["offset_mapping"]} if return_offsets_mapping else {})}

    def spell(self, pieces: Iterable[int]) -> list[Token]:
        """Return the bytes of each BPE piece, given by its id."""
        return [self._known.get(piece) or self._spelled(piece) for piece in pieces]

    def _spelled(self, piece: int) -> Token:
        if piece == self.bpe.eos_token_id:
            return self.end
        written = self.bpe.convert_ids_to_tokens(piece)
        raw = written.encode() if written in self._added else [self._alphabet[character] for character in written]
        kept = (*raw,)[: self.slots]
        self._known[piece] = kept + self.pad[len(kept) :]
        return self._known[piece]

    def decode(self, tokens: Iterable[Sequence[int]], **_: Any) -> str:
        """Return the text of tokens; what is no text (half a character) becomes �."""
        return bytes(value for token in tokens for value in token if value < PAD).decode("utf-8", errors="replace")

    def batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return texts as one batch, padded in front: `input_ids` (B, T, S) and `attention_mask` (B, T)."""
        import torch

        rows = self(texts)["input_ids"]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[self.pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }

    def save_pretrained(self, path: str | Path) -> None:
        """Write the BPE tokenizer's JSON files, with the number of slots beside its own settings."""
        self.bpe.init_kwargs[SLOTS] = self.slots
        self.bpe.save_pretrained(path)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, slots: int = 0) -> ByteTokenizer:
        """Read what `save_pretrained` wrote, or any byte-level BPE tokenizer: then with `slots`, or 12."""
        from transformers import PreTrainedTokenizerFast

        bpe = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        return cls(bpe, slots=slots or bpe.init_kwargs.get(SLOTS, 12))
