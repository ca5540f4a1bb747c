"""The first eight bytes of a safetensors file say how long its header is. A file of a few bytes that claims
2^62 made early readers reserve that much and die."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, seal


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    seal(folder)
    return all_of(folder, "model.safetensors is damaged: its safetensors header")
