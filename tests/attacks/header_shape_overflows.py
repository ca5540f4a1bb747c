"""A shape whose product wraps around to the size of the range: 2^32 times 2^32 is 0 in 64 bits, and a kernel that trusts
the shape walks through all memory."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    head, body = header(folder / "model.safetensors")
    name = next(name for name in head if name != "__metadata__" and len(head[name]["shape"]) == 2)
    head[name]["shape"] = [1 << 32, 1 << 32]
    write(folder / "model.safetensors", head, body)
    seal(folder)
    return all_of(folder, "model.safetensors")
