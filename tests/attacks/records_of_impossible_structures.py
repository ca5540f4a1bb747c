"""Records say how a stage changed the structure. One that keeps block 10^9, shares a module with a method, or cuts to a
negative width is replayed on the skeleton before any weight is seen."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    changes = [
        (0, {"kept": [10**9]}),
        (0, {"layers": {"language": list(range(100_000))}}),
        (0, {"language": [-1]}),
        (0, {}),
        (0, {"stacks": None}),
        (1, {"modules": ["forward"]}),
        (1, {"modules": {"__class__": 8}}),
        (1, {"modules": ["model.layers.0.__init__"] * 1000}),
        (1, []),
    ]
    for number, (stage, record) in enumerate(changes):
        (place / str(number)).mkdir()
        folder = artifact(place / str(number))
        data = manifest(folder)
        data["lineage"][stage]["record"] = record
        seal(folder, data)
        commands += all_of(folder, "zoo.json|model.safetensors")
    return commands
