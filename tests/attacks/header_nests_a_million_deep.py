"""A header of a million opening brackets ends a recursive JSON reader with a stack overflow."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    _, body = header(folder / "model.safetensors")
    write(folder / "model.safetensors", b"[" * 1_000_000, body)
    seal(folder)
    return all_of(folder, "model.safetensors is damaged")
