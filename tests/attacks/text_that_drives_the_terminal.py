"""Escape sequences in names, summaries and notes: printed as they are, they rename the window, rewrite what stands above, or
type commands into some terminals."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    folder = artifact(place)
    data = manifest(folder)
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\rharmless"
    data["spec"].update(name=evil, summary=evil, license=evil, paper=evil, hub=evil)
    data["notes"] = {evil: evil}
    data["lineage"][0]["options"] = {evil: evil}
    seal(folder, data)
    return [
        (["info", str(folder)], ""),
        (["inspect", str(folder)], ""),
        (["verify", str(folder)], ""),
        *all_of(folder, ""),
    ]
