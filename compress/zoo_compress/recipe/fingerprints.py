"""What a result depends on: hashes of what went in, versions, and the machine it was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import Any

from zoo.model.provenance import cpu
from zoo.model.provenance import versions as versions
from zoo.model.provenance import weights_digest as weights_digest


def digest(value: Any) -> str:
    """Hash plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil
    import torch

    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **versions(),
    }
