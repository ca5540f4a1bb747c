"""Shared by all tests."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, two of which may run at a time

import torch

torch.set_num_threads(1)  # tiny tensors run several times slower on two threads that wait for each other

# A runner in the background starts us with signals ignored, and the processes we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
