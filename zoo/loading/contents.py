"""What a folder holds that is no model: said with what would make one of it."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.errors import ZooError
from zoo.system.reading import LARGEST_DATA, text_of

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx", "*.h5", "*.msgpack")


def instead_of_a_model(path: Path) -> str:
    """Say what is in `path`, where neither a manifest nor a config is: "it holds ..., ..."."""
    if (path / "adapter_config.json").is_file():
        base = _base_of_adapter(path / "adapter_config.json")
        return (
            f"it holds a PEFT Adapter, which changes a model and is none: merge it into {base or 'the model it was trained on'} "
            "(merge_and_unload), and give the folder that you save then"
        )
    if files := sorted(path.glob("*.gguf")):
        return f"it holds a GGUF file ({files[0].name}), which is not read: give the safetensors checkpoint it was made from"
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
