"""A checkpoint that has only pickles, under every name that is usual for them."""

from __future__ import annotations

from pathlib import Path

from victim import Commands, all_of, checkpoint, pickle_to


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "model.safetensors").unlink()
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "consolidated.00.pth",
        "model.ckpt",
        "training_args.bin",
    ):
        pickle_to(folder / name, canary)
    return all_of(folder, "holds no .safetensors file")
