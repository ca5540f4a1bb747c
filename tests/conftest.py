"""Shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, two of which may run at a time

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors run several times slower on two threads that wait for each other

# A runner in the background starts us with signals ignored, and the processes we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick`, leave alone the files without a quick test: importing them takes as long as the subset itself."""
    if config.option.markexpr == "quick" and collection_path.name.startswith("test_"):
        return None if "mark.quick" in collection_path.read_text(encoding="utf-8") else True
    return None
