"""Small questions about modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from twins import TWINS, twin

from zoo.anatomy.modules import EPSILONS, has


class Wrapper(nn.Module):
    """Says what the module inside it says, as wrappers of other libraries do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Asked(nn.Module):
    """Has a number by a property, and another as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.ones(1))

    @property
    def in_features(self) -> int:
        return 3


@pytest.mark.parametrize("name", TWINS)
def test_a_module_has_what_hasattr_says(name: str) -> None:
    names = ("in_features", "nx", "num_embeddings", "kernel_size", "weight", "normalized_shape", "parametrizations")
    others = (nn.Conv2d(1, 1, 1), Wrapper(nn.Linear(2, 3)), Asked())
    for part in (*twin(name).modules(), *others):
        for asked in (*names, *EPSILONS):
            assert has(part, asked) == hasattr(part, asked), (type(part).__name__, asked)
