"""A pickle called model.safetensors: loaders that sniff the content and fall back to torch.load run it."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, checkpoint, pickle_to


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    pickle_to(folder / "model.safetensors", canary)
    return all_of(folder, "model.safetensors is damaged: its safetensors header")
