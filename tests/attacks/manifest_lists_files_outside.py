"""File names in a manifest that are absolute or climb with "..": a verifier that hashes them tells an attacker what a file
holds, a loader reads it."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for number, name in enumerate(
        ("/etc/passwd", "../../../../../../etc/passwd", "a/../../x", "..", "", "C:\\x", "\x00")
    ):
        (place / str(number)).mkdir()
        folder = artifact(place / str(number))
        data = manifest(folder)
        data["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        seal(folder, data)
        commands += [*all_of(folder, "is not a file of this directory|is damaged"), (["verify", str(folder)], "")]
    return commands
