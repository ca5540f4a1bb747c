"""A manifest that lists a pickle as its weights, correctly hashed: what a file is must not follow from what is said of it."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, manifest, pickle_to, seal


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    data = manifest(folder)
    pickle_to(folder / "model.pt", canary)
    (folder / "model.safetensors").unlink()
    data["files"]["model.pt"] = data["files"].pop("model.safetensors")
    seal(folder, data)
    return all_of(folder, "lists no weight file")
