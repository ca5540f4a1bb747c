"""What an artifact is checked by: xxh3 of the very bytes that are used at every load, sha256 for what it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file
from twins import twin
from zoo_compress import apply

import zoo
from zoo.artifact import store
from zoo.artifact.manifest import manifest_text
from zoo.errors import ArtifactError
from zoo.system.hashing import CHUNK, chunks_of, digests_of
from zoo.tensors.mapped import MappedTensors

IDS = torch.arange(3, 9)[None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    twin("llama").save_pretrained(folder / "plain")
    model = zoo.load(folder / "plain")
    apply(model, "quantize.int8")
    return model.save(folder / "saved")


@pytest.fixture
def saved(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "saved"))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = zoo.load(folder).module(input_ids=IDS).logits
    return found


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and seal it again, as whoever wants to can."""
    manifest = json.loads((folder / "zoo.json").read_text())
    change(manifest)
    (folder / "zoo.json").write_text(manifest_text(manifest))


def as_before(manifest: dict[str, Any]) -> None:
    """A manifest as it was written before files had an xxh3."""
    manifest["format"] = 2
    for about in manifest["files"].values():
        del about["xxh3"]


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as refused:
        zoo.load(folder)
    return str(refused.value)


@pytest.mark.parametrize("size", [0, 1, 2**20, CHUNK, CHUNK + 5])
def test_a_file_has_an_xxh3_for_each_chunk(tmp_path: Path, size: int):
    file, content = tmp_path / "file", os.urandom(min(size, 2**20)) + bytes(max(0, size - 2**20))
    file.write_bytes(content)
    expected = [xxhash.xxh3_128_hexdigest(content[start : start + CHUNK]) for start in range(0, size, CHUNK)]
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": size, "xxh3": expected}
    assert digests_of(file) == digests_of(content) == digests and chunks_of(file) == expected


def test_every_file_is_in_the_manifest_with_both_hashes(honest: Path):
    manifest = json.loads((honest / "zoo.json").read_text())
    assert manifest["format"] == 3
    for name, about in manifest["files"].items():
        assert about == digests_of(honest / name)


def test_a_flipped_bit_in_any_part_of_the_weights_is_refused(honest: Path, saved: Path):
    """In the length of the header, in its text, in its padding, at either end of every tensor."""
    file = saved / "model.safetensors"
    mapped = MappedTensors(file)
    edges = [edge for about in mapped.header.values() for edge in about["data_offsets"]]
    bytes_ = {
        0,
        7,
        8,
        mapped.start - 1,
        *(mapped.start + edge for edge in edges),
        *(mapped.start + e - 1 for e in edges),
    }
    whole = file.read_bytes()
    for byte in sorted(place for place in bytes_ if place < len(whole)):
        flip(file, byte)
        assert "model.safetensors does not have the xxh3 of the manifest" in refusal(saved), byte
        file.write_bytes(whole)
    assert torch.equal(logits(saved), logits(honest))


def test_a_flipped_bit_in_another_file_is_refused(saved: Path):
    flip(saved / "README.md", 5)
    assert "README.md does not have the xxh3 of the manifest; the artifact is damaged" in refusal(saved)


def test_a_flipped_bit_in_a_hash_is_refused(saved: Path):
    text = (saved / "zoo.json").read_text()
    for kind in ("sha256", "xxh3", "seal"):
        place = next(
            i for i in range(text.index(f'"{kind}"') + len(kind) + 3, len(text)) if text[i] in "0123456789abcdef"
        )
        (saved / "zoo.json").write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])
        assert "zoo.json is damaged: it is not as it was written" in refusal(saved)


def test_weights_of_another_size_or_model_are_refused(saved: Path, tmp_path: Path):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole + b"\0", whole[:-1], b""):
        file.write_bytes(content)
        assert f"has {len(content)} bytes, the manifest says {len(whole)}" in refusal(saved)
    other = twin("llama", seed=1)
    other.save_pretrained(tmp_path / "plain")
    model = zoo.load(tmp_path / "plain")
    apply(model, "quantize.int8")
    shutil.copy(model.save(tmp_path / "other") / "model.safetensors", file)
    assert file.stat().st_size == len(whole)
    assert "does not have the xxh3 of the manifest from byte 0" in refusal(saved)


def test_what_someone_changed_on_purpose_is_found_by_verify(saved: Path):
    """xxh3 keeps out damage alone: who knows how makes it fit. The sha256 that others know the model by does not."""
    flip(saved / "model.safetensors", -1)
    rewrite(saved, lambda m: m["files"]["model.safetensors"].update(xxh3=chunks_of(saved / "model.safetensors")))
    zoo.load(saved)
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "verify", str(saved)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "model.safetensors: does not have the sha256 of the manifest" in done.stdout


def test_verify_finds_a_wrong_xxh3_too(saved: Path):
    rewrite(saved, lambda m: m["files"]["model.safetensors"].update(xxh3=["0" * 32]))
    assert store.verify(saved) == [("model.safetensors", "does not have the xxh3 of the manifest")]


def test_what_was_saved_before_loads_the_same_and_is_checked_by_sha256(honest: Path, saved: Path):
    rewrite(saved, as_before)
    assert torch.equal(logits(saved), logits(honest)) and not store.verify(saved)
    flip(saved / "model.safetensors", -1)
    assert "model.safetensors does not have the sha256 of the manifest; the artifact is damaged" in refusal(saved)


def test_a_manifest_cannot_drop_its_xxh3(saved: Path):
    rewrite(saved, lambda m: m["files"]["model.safetensors"].pop("xxh3"))
    assert "file 'model.safetensors' has not one xxh3 for each 67,108,864 bytes" in refusal(saved)


def test_chunks_are_compared_before_a_tensor_of_them_is_used(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.ones(CHUNK // 4), "c": torch.ones(1000)}, file)
    digests, size = digests_of(file), file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size - 5)
        opened.write(b"\x01")
    mapped = MappedTensors(file, digests)
    assert torch.equal(mapped.tensor("a"), torch.ones(1000))
    for name in "bc":
        with pytest.raises(
            ArtifactError, match=rf"the xxh3 of the manifest from byte {CHUNK:,} to {size:,}; the artifact"
        ):
            mapped.tensor(name)
    assert MappedTensors(file).tensor("c")[-2] != 1


def test_the_file_that_is_mapped_is_the_one_that_is_compared(tmp_path: Path):
    """Another file that takes its place between two looks at it is not used."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for file, value in ((first, 1.0), (second, 2.0)):
        save_file({"a": torch.full((8,), value)}, file)
    with pytest.raises(ArtifactError, match="does not have the xxh3"):
        MappedTensors(second, digests_of(first))
    mapped = MappedTensors(first, digests_of(first))
    second.replace(first)
    assert torch.equal(mapped.tensor("a"), torch.ones(8))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e5m2]
)
def test_mapped_tensors_are_those_of_the_format(tmp_path: Path, dtype: torch.dtype):
    from safetensors.torch import load_file

    tensors = {
        "a": torch.arange(12).reshape(3, 4).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "b": torch.ones((), dtype=dtype),
    }
    save_file(tensors, tmp_path / "file.safetensors")
    expected, mapped = load_file(tmp_path / "file.safetensors"), MappedTensors(tmp_path / "file.safetensors")
    for name, tensor in expected.items():
        found = mapped.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


# --- in the hub's cache, where every file is a link -----------------------------------------------------------------------


def as_cached(folder: Path, cache: Path) -> Path:
    """An artifact as huggingface_hub keeps what it has downloaded: files in `blobs`, and links to them in a snapshot."""
    repository = cache / "models--team--small"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_an_artifact_in_the_cache_of_the_hub_is_loaded(saved: Path, tmp_path: Path):
    snapshot = as_cached(saved, tmp_path / "cache")
    assert store.verify(snapshot) == []
    assert torch.equal(logits(snapshot), logits(saved))


def test_a_link_in_the_cache_that_leads_elsewhere_is_refused(saved: Path, tmp_path: Path):
    snapshot = as_cached(saved, tmp_path / "cache")
    outside = shutil.copy(saved / "model.safetensors", tmp_path / "outside.safetensors")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(outside)
    assert "model.safetensors is missing" in refusal(snapshot)
