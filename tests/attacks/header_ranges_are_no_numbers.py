"""Offsets that are negative, text, fractions, or the wrong way round: arithmetic on them before they are checked gives
reads in front of the buffer."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, header, seal, write


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for number, offsets in enumerate([[-8, 8], ["0", "8"], [0.5, 8], [64, 0], [None, None], [0, 1e400]]):
        (place / str(number)).mkdir()
        folder = artifact(place / str(number))
        head, body = header(folder / "model.safetensors")
        head[sorted(name for name in head if name != "__metadata__")[0]]["data_offsets"] = offsets
        write(folder / "model.safetensors", head, body)
        seal(folder)
        commands += all_of(folder, "model.safetensors")
    return commands
