"""The safe file is damaged and a pickle lies beside it: a loader that catches the failure and tries "the other format"
runs what the attacker wants. Several well-known loaders did exactly this."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, checkpoint, pickle_to


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    pickle_to(folder / "pytorch_model.bin", canary)
    return all_of(folder, "model.safetensors is cut short")
