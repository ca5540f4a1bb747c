"""Headers of GGUF files: read, or refused in a sentence before anybody makes room for what they promise."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from zoo.errors import ArtifactError
from zoo.tensors.gguf import KINDS, read_header

STRING, ARRAY, UINT8, UINT32, UINT64 = 8, 9, 0, 4, 10


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def head(tensors: int = 0, keys: int = 0, *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def test_a_file_of_the_package_gguf_is_read(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_array("llama.sizes", [3, 1, 2])
    writer.add_bool("llama.flag", True)
    rows = np.arange(256 * 4, dtype=np.float32).reshape(4, 256)
    writer.add_tensor("plain", rows)
    packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "model.gguf")
    assert header.metadata == {"general.architecture": "llama", "llama.sizes": [3, 1, 2], "llama.flag": True}
    assert header.kinds == {"F32": 1024, "Q4_0": 1024}
    packed_tensor = header.tensors["packed"]
    assert packed_tensor.shape == (4, 256)
    content = (tmp_path / "model.gguf").read_bytes()
    assert content[packed_tensor.start : packed_tensor.end] == packed.tobytes()


def test_sizes_of_blocks_are_those_of_the_package_gguf() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
    assert {kind: sizes[kind] for kind in KINDS} == KINDS


ONE = tensor("w", (4,))
DAMAGED = {
    "nothing": (b"", "is not a GGUF file"),
    "four bytes": (b"GGUF", "the version of 4 bytes reaches beyond the file"),
    "no GGUF": (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "version 1": (head(version=1), "is GGUF of version 1; versions 2 and 3 are read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "tensors": (head(2**63), "says that it has 9,223,372,036,854,775,808 tensors"),
    "keys": (head(0, 2**32), "says that it has 4,294,967,296 metadata keys"),
    "length of a key": (head(0, 1) + struct.pack("<Q", 2**40), "the name of a metadata key of 1,099,511,627,776 bytes"),
    "length of a string": (head(0, 1) + key("a", STRING, struct.pack("<Q", 2**62)), "the value of 'a'"),
    "count of an array": (
        head(0, 1) + key("a", ARRAY, struct.pack("<IQ", UINT8, 2**40)),
        "more than 2,097,152 elements",
    ),
    "count of strings": (head(0, 1) + key("a", ARRAY, struct.pack("<IQ", STRING, 2**20)), "the value of 'a'"),
    "nested arrays": (head(0, 1) + key("a", ARRAY, struct.pack("<IQ", ARRAY, 2) * 9), "an array of arrays"),
    "type of a value": (head(0, 1) + key("a", 99, b""), "'a' is of type 99"),
    "a key twice": (head(0, 2) + key("a", UINT8, b"\0") * 2, "metadata key 'a' is there twice"),
    "no text": (head(0, 1) + text(b"\xff") + bytes(8), "is not UTF-8 text"),
    "a tensor twice": (head(2) + ONE + ONE, "tensor 'w' is there twice"),
    "dimensions": (head(1) + tensor("w", (1, 1, 1, 1, 1)), "has 5 dimensions"),
    "no dimension": (head(1) + tensor("w", ()), "has 0 dimensions"),
    "size 0": (head(1) + tensor("w", (0,)), "is not made of blocks"),
    "part of a block": (head(1) + tensor("w", (33,), kind=8), "is not made of blocks of 32 as Q8_0 is"),
    "terabytes": (head(1) + tensor("w", (2**40, 2**20)), "and the file has"),
    "overflow": (head(1) + tensor("w", (2**63, 2**63, 2**63, 2**63)), "and the file has"),
    "offset": (head(1) + tensor("w", (4,), offset=2**50), "and the file has"),
    "misaligned": (head(1) + tensor("w", (4,), offset=4) + bytes(99), "begins at 4, which is no multiple of 32"),
    "type of a tensor": (head(1) + tensor("w", (4,), kind=77), "is stored in a way that is not known here"),
    "overlap": (
        head(2) + tensor("a", (16,)) + tensor("b", (4,), offset=32) + bytes(200),
        "'a' and 'b' lie on each other",
    ),
    "alignment": (head(0, 1) + key("general.alignment", UINT32, struct.pack("<I", 48)), "no power of two"),
    "a part": (head(0, 1) + key("split.count", UINT32, struct.pack("<I", 3)), "is one of 3 files of a model"),
}


@pytest.mark.parametrize(("content", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_a_header_that_promises_too_much_is_refused_without_making_room(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=sentence):
        read_header(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000, f"{peak:,} bytes for a file of {len(content)}"


@pytest.mark.parametrize("size", range(0, 384, 7))
def test_a_file_cut_anywhere_is_refused(size: int, tmp_path: Path) -> None:
    whole = head(1, 2) + key("general.architecture", STRING, text("llama")) + key("a", UINT64, bytes(8))
    whole += tensor("w", (64,))
    whole += bytes(-len(whole) % 32) + bytes(256)
    assert len(whole) == 384
    (tmp_path / "model.gguf").write_bytes(whole[:size])
    with pytest.raises(ArtifactError):
        read_header(tmp_path / "model.gguf")
