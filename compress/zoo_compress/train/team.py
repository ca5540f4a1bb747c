"""Several processes that train one model together: each runs a part of every batch, and their gradients are added up.

Every process holds the whole model and makes the same steps, so their weights stay the same to the bit. The first one
plans, writes and measures; the others only train along.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import nn

from zoo.errors import RequestError, ZooError, reason
from zoo.system import processes, signals
from zoo_compress.train.feed import parts

FOUND_WITHIN = timedelta(minutes=5)  # processes find each other, or end
PATIENCE = timedelta(days=30)  # of those that wait while the first works alone
BUCKET = 2**24  # numbers that are added up at a time


@dataclass(frozen=True)
class Team:
    """The processes that were started together; one, where this one was started alone."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Team:
        """Find the other processes, where a launcher started several.

        Raises:
            RequestError: they each hold a part of the model, or cannot find each other.
        """
        processes.require_data_parallel("Training")
        if not processes.several():
            return cls()
        try:
            _group()
        except RuntimeError as error:
            raise RequestError(f"Training cannot reach the other processes: {reason(error)}.") from None
        return cls(distributed.get_rank(), distributed.get_world_size())

    def own(self, rows: range) -> range:
        """The part of some rows that falls to this process; empty where there are fewer rows than processes."""
        return parts(rows, self.count)[self.rank]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of numbers over all processes, which all have the same names."""
        if self.count == 1:
            return dict(values)
        summed = torch.tensor(list(values.values()), dtype=torch.float64)
        self._add(summed)
        return dict(zip(values, summed.tolist(), strict=True))

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes; a parameter that none has a gradient for is left without."""
        if self.count == 1:
            return
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        self._add(present)
        reached = [parameter for parameter, some in zip(parameters, present.tolist(), strict=True) if some]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in reached if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            self._add(flat)
            for gradient, piece in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def tell(self, number: int) -> None:
        """Tell the others a number, as the first process."""
        self._agree(number)

    def hear(self) -> int:
        """The next number that the first process tells."""
        return self._agree(0)

    def _agree(self, number: int) -> int:
        if self.count == 1:
            return number
        told = torch.tensor([number])
        with _lost():
            distributed.broadcast(told, src=0, group=_group())
        return int(told)

    def _add(self, tensor: torch.Tensor) -> None:
        with _lost():
            distributed.all_reduce(tensor, group=_group())


@functools.cache
def _group() -> Any:
    """The connection of all processes, over which they wait for each other as long as it takes."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not processes.begun():
        distributed.init_process_group(backend, timeout=FOUND_WITHIN)
    return distributed.new_group(backend=backend, timeout=PATIENCE)


@contextmanager
def _lost() -> Iterator[None]:
    """Say in a sentence that another process has ended; a signal that ends them all comes first."""
    try:
        yield
    except RuntimeError:
        signals.check()
        raise ZooError("Another of the processes that were started together has ended, so this one ends.") from None


def _buckets(gradients: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in groups of about `BUCKET` numbers."""
    groups: list[list[torch.Tensor]] = []
    held = BUCKET
    for gradient in gradients:
        if held >= BUCKET:
            groups.append([])
            held = 0
        groups[-1].append(gradient)
        held += gradient.numel()
    return groups
