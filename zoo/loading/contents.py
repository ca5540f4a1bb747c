"""What a folder holds that is no model: said with what would make one of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import ArtifactError, ZooError
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.h5", "*.msgpack")


def require_own_weights(path: Path, files: Sequence[Path]) -> None:
    """Refuse a checkpoint whose weight files are not those of a model.

    Raises:
        ArtifactError: they are an adapter's, or have names that the library of the checkpoint does not look for.
    """
    if files and all(file.name.startswith("adapter") for file in files):
        raise ArtifactError(f"{path} has no weights of a model: {instead_of_a_model(path)}.")
    safetensors.require_named(path, files)


def require_readable(path: Path) -> None:
    """Refuse a folder whose weights are in other formats alone; a config without any can be planned for.

    Raises:
        ArtifactError: names one of them.
    """
    others = sorted(file.name for pattern in (*OTHER_WEIGHTS, "*.gguf") for file in path.glob(pattern))
    if others and not any(path.rglob("*.safetensors")):
        raise ArtifactError(f"{path} holds {others[0]}, and no .safetensors file; other weight formats are not read.")


def instead_of_a_model(path: Path) -> str:
    """Say what is in `path`, where neither a manifest nor a config is: "it holds ..., ..."."""
    if (path / "adapter_config.json").is_file():
        base = _base_of_adapter(path / "adapter_config.json")
        return (
            f"it holds a PEFT Adapter, which changes a model and is none: merge it into {base or 'the model it was trained on'} "
            "(merge_and_unload), and give the folder that you save then"
        )
    if files := sorted(path.glob("*.safetensors")):
        return f"it holds weights ({files[0].name}) without a config.json, which says what model they are of"
    if files := sorted(file for pattern in OTHER_WEIGHTS for file in path.glob(pattern)):
        return f"it holds {files[0].name}; only safetensors are read, beside a config.json"
    below = sorted(folder for folder in path.iterdir() if (folder / "config.json").is_file())
    if below:
        return f"it holds neither zoo.json nor a known config such as config.json, but {below[0]} does"
    return "it holds neither zoo.json nor a known config such as config.json"


def _base_of_adapter(file: Path) -> str:
    """The model that an adapter was trained on, where it says so."""
    try:
        base = json.loads(text_of(file, error=ZooError, most=LARGEST_DATA)).get("base_model_name_or_path")
    except (ZooError, ValueError, AttributeError, RecursionError):
        return ""
    return str(base or "")[:100]
