"""A manifest, a config or a tokenizer config of a hundred thousand opening brackets: recursive readers overflow their stack."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, checkpoint, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for name in ("zoo.json", "tokenizer_config.json"):
        (place / name).mkdir()
        folder = artifact(place / name)
        data = manifest(folder)
        (folder / name).write_text("[" * 100_000)
        if name != "zoo.json":
            seal(folder, data)
        commands += all_of(folder, name.partition(".")[0])
    folder = checkpoint(place)
    (folder / "config.json").write_text('{"model_type": ' * 100_000)
    return [*commands, *all_of(folder, "config.json")]
