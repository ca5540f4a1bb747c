"""A range that ends far behind the file reads whatever memory happens to be mapped there."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    head, body = header(folder / "model.safetensors")
    name = sorted(name for name in head if name != "__metadata__")[0]
    head[name]["data_offsets"] = [1 << 40, (1 << 40) + 64]
    write(folder / "model.safetensors", head, body)
    seal(folder)
    return all_of(folder, "model.safetensors (is cut short|is damaged)")
