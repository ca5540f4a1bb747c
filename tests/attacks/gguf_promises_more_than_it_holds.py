"""A GGUF header of a few hundred bytes promises terabytes: billions of strings, a tensor that overflows, a billion layers.
Readers that make room for what they are promised have died of each; one that looks at the size of the file first does not."""

from __future__ import annotations

import struct
from pathlib import Path

from victim import Commands

STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def count(name: str, value: int) -> bytes:
    return key(f"llama.{name}", UINT32, struct.pack("<I", value))


ARCHITECTURE = key("general.architecture", STRING, text("llama"))
SHAPE = {"context_length": 64, "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 4}
SHAPE |= {"rope.dimension_count": 16, "vocab_size": 320}
TABLE = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 320, 0, 0)


def model(layers: int, width: int) -> bytes:
    """An honest header of a llama of that size with one honest tensor, its table of tokens."""
    keys = [count(name, value) for name, value in {**SHAPE, "block_count": layers, "embedding_length": width}.items()]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys) + 1) + ARCHITECTURE + b"".join(keys) + TABLE
    return head + bytes(-len(head) % 32) + bytes(64 * 320 * 4)


BOMBS = {
    b"GGUF"
    + struct.pack("<IQQ", 3, 2**40, 1)
    + ARCHITECTURE: "is a damaged GGUF file: it says that it has 1,099,511,627,776 tensors",
    b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + text("a")
    + struct.pack("<IIQ", ARRAY, STRING, 2**33): "is a damaged GGUF file: its arrays",
    b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + text("a")
    + struct.pack("<IQ", STRING, 2**60): "is a damaged GGUF file: at byte",
    b"GGUF"
    + struct.pack("<IQQ", 3, 1, 1)
    + ARCHITECTURE
    + text("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0): "is a damaged GGUF file: tensor 'token_embd.weight' ends at byte",
    model(10**9, 64): "block_count: num_hidden_layers is 1e.09, and no model has more",
    model(9_000, 64): "is a damaged GGUF file: its header has 9,000 blocks, and 1 tensors",
    model(1, 2**16): "holds 20,480 weights, and the LlamaForCausalLM that transformers makes of its header has",
}


def prepare(place: Path, canary: Path) -> Commands:
    commands: Commands = []
    for number, (content, says) in enumerate(BOMBS.items()):
        file = place / f"bomb{number}.gguf"
        file.write_bytes(content)
        commands.append(
            (["run", str(file), "--prompt", "a", "--max-new-tokens", "2"], f"^error: .*bomb{number}.gguf.* {says}")
        )
    return commands
