"""A linear layer with inputs like those of a language model: correlated, and a few channels ten times the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    weight: Tensor  # (out, in)
    calibration: Tensor  # (tokens, in)
    test: Tensor

    @property
    def gram(self) -> Tensor:
        return self.calibration.T @ self.calibration

    def error(self, weight: Tensor) -> float:
        """||X (W - W')^T|| / ||X W^T|| on the inputs that no method has seen."""
        return float((self.test @ (self.weight - weight).T).norm() / (self.test @ self.weight.T).norm())


def synthetic_layer(seed: int, *, out: int = 256, inputs: int = 256, tokens: int = 4096) -> Layer:
    """W ~ N(0, .02^2); the inputs spread from 1 down to 10^-1.5 along a random basis; half of them calibrate."""
    draw = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(out, inputs, generator=draw, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(inputs, inputs, generator=draw, dtype=torch.float64))
    spectrum = torch.logspace(0, -1.5, inputs, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=draw, dtype=torch.float64) @ (spectrum[:, None] * basis)
    x[:, torch.randperm(inputs, generator=draw)[:4]] *= 10
    return Layer(weight, x[: tokens // 2], x[tokens // 2 :])
