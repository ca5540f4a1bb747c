"""Two tensors over the same bytes: a reviewer who looks at one file sees another model than the loader, and a
writer that edits one tensor changes both. The format forbids it; readers that do not check accept it."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    head, body = header(folder / "model.safetensors")
    names = sorted(name for name in head if name != "__metadata__")
    same = [
        name
        for name in names
        if head[name]["shape"] == head[names[-1]]["shape"] and head[name]["dtype"] == head[names[-1]]["dtype"]
    ]
    head[same[0]]["data_offsets"] = head[same[-1]]["data_offsets"]
    write(folder / "model.safetensors", head, body)
    seal(folder)
    return all_of(folder, "model.safetensors")
