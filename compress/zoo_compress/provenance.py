"""What a result depends on: hashes of what went in, versions, and the machine it was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo.files import sha256_of

COUNTED = (".safetensors", ".json", ".txt", ".model")  # weights, and what a tokenizer is made of


def digest(value: Any) -> str:
    """Hash plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(place: Path) -> str:
    """Hash the weights and tokenizer in a folder, or one file; "" where there is nothing."""
    if not place.is_dir():
        return sha256_of(place) if place.is_file() else ""
    files = sorted(p for p in place.rglob("*") if p.suffix in COUNTED and p.is_file())
    return digest({p.relative_to(place).as_posix(): sha256_of(p) for p in files})


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: version(name) for name in ("zoo", "torch", "transformers", "tokenizers", "timm", "diffusers")}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **versions(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
