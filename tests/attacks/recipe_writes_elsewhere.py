"""The name of a recipe becomes the name of its output folder; "../../" in it, or an absolute path, writes where the author of the
recipe wants."""

from __future__ import annotations

import json
from pathlib import Path

from victim import Commands, checkpoint


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (place / "words.txt").write_text("w5 w6 w7 " * 500)
    commands = []
    for number, name in enumerate(
        ("../../escaped", "/tmp/escaped", "a/b", "..", ".", "", "x" * 5000, "nul\x00", "~/escaped")
    ):
        text = f'[recipe]\nname = {json.dumps(name)}\n[model]\nname = "{folder}"\n[[stage]]\nuse = "quantize.int8"\n'
        (place / f"recipe{number}.toml").write_text(text)
        commands.append((["compress", f"recipe{number}.toml"], "name"))
    return commands
