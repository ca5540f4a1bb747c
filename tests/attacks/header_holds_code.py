"""Tensor names and metadata that are Python expressions: tools that `eval` the text of a header, to turn "(2, 3)" into a
shape or a name into an attribute, run them."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    head, body = header(folder / "model.safetensors")
    evil = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    name = sorted(name for name in head if name != "__metadata__")[0]
    head = {
        "__metadata__": {"format": evil, "shape": evil},
        **{(evil if key == name else key): value for key, value in head.items() if key != "__metadata__"},
    }
    write(folder / "model.safetensors", head, body)
    seal(folder)
    return all_of(folder, "tensor .* is (missing|not part of the model)")
