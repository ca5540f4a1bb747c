"""The index of a sharded checkpoint says which file holds which tensor; absolute names and ".." reach anything the
victim can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from victim import Commands, all_of, checkpoint, header


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    head, _ = header(folder / "model.safetensors")
    secret = place / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    commands = []
    for number, name in enumerate(("../secret.safetensors", str(secret))):
        copy = Path(shutil.copytree(folder, place / f"copy{number}"))
        names = {key: name for key in head if key != "__metadata__"}
        (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        commands += all_of(copy, "holds no .safetensors file|not a file of this directory|lies outside")
        shutil.copyfile(secret, copy / "decoy.safetensors")
    return commands
