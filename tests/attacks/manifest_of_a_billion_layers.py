"""A few digits in a config ask for a billion blocks, or for rotary tables of a terabyte: the loader builds until the
machine is out of memory, before any weight is compared."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, artifact, change, checkpoint, manifest, seal


def prepare(place: Path, canary: Path) -> Commands:
    commands = []
    for number, values in enumerate(
        (
            {"num_hidden_layers": 10**9},
            {"head_dim": 10**12},
            {"vocab_size": 10**15},
            {"hidden_size": 2**62},
            {"num_attention_heads": 10**30},
            {"num_hidden_layers": -1},
            {"num_hidden_layers": "NaN"},
            {"max_position_embeddings": 10**18},
        )
    ):
        (place / str(number)).mkdir()
        folder = artifact(place / str(number))
        data = manifest(folder)
        data["spec"]["config"].update(values)
        seal(folder, data)
        commands += all_of(
            folder, "" if "max_position_embeddings" in values else "zoo.json|model.safetensors|checkpoint|artifact"
        )
        other = checkpoint(place / str(number))
        change(other / "config.json", **values)
        commands += all_of(other, "" if "max_position_embeddings" in values else "config.json|checkpoint")
    return commands
