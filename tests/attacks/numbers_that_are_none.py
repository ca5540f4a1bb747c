"""NaN, Infinity and negative numbers where sizes are expected; Python's JSON reader takes them."""

from __future__ import annotations

import json
from pathlib import Path

from victim import Commands, all_of, artifact, manifest


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for number, size in enumerate(("NaN", "Infinity", "-1", "1e999", "true", '"12"')):
        (place / str(number)).mkdir()
        folder = artifact(place / str(number))
        data = manifest(folder)
        data["files"]["model.safetensors"]["bytes"] = "HERE"
        (folder / "zoo.json").write_text(json.dumps(data).replace('"HERE"', size))
        commands += all_of(folder, "zoo.json|model.safetensors")
    return commands
