"""A named pipe where a file is expected: whoever opens it waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

from victim import Commands, all_of, artifact, checkpoint


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for name in ("zoo.json", "model.safetensors", "tokenizer.json"):
        (place / name).mkdir()
        folder = artifact(place / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        commands += all_of(folder, name.partition(".")[0])
    folder = checkpoint(place)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    return [*commands, *all_of(folder, "config.json")]
