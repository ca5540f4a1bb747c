"""A config that carries the consent itself: `trust_remote_code: true` in the data, which loaders passed on as an
argument. Here nobody asks for it."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, change, checkpoint, code


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "modeling_evil.py").write_text(code(canary))
    change(folder / "config.json", trust_remote_code=True)
    return all_of(folder, "")
