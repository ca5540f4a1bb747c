"""A folder whose weight file, or manifest, is a link to somewhere else: what was verified is not what lies in the folder,
and can be exchanged afterwards."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    outside = place / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    return all_of(folder, "model.safetensors is missing")
