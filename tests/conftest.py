"""Shared by all tests."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # tiny tensors run several times slower on two threads that wait for each other
