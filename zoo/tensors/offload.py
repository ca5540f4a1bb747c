"""Tensors in files in place of memory, for models that are larger than it.

A parameter is mapped from a file of its own, shared: what is written into it goes to the file, and the system takes out
of memory what is not being used. So every part of a model can be read, run, changed and replaced as always. The files
have no names once they are mapped; they are gone with the tensors, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.system.memory import give_back_at_once
from zoo.system.memory import let_go as let_go_of_pages
from zoo.system.writing import writing

PIECE = 1 << 22  # values copied at a time


class Offload:
    """Puts tensors into files of a directory.

    Raises:
        OutputError: there is no room for a tensor, or the directory cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        give_back_at_once(1 << 20)  # whoever asks for this is short of memory

    @classmethod
    def of(cls, module: nn.Module) -> Offload | None:
        """What put the parameters of a module into files; None where they are in memory."""
        name = next((p.untyped_storage().filename for p in module.parameters() if is_offloaded(p)), None)
        return None if name is None else cls(Path(name).parent)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor in a file."""
        count = torch.Size(shape).numel()
        if not count:
            return torch.empty(shape, dtype=dtype)
        with writing(self.folder, size=count * dtype.itemsize):
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".offload-")
            try:
                _reserve(handle, count * dtype.itemsize)
                flat = torch.from_file(name, shared=True, size=count, dtype=dtype)
            finally:
                os.close(handle)
                Path(name).unlink()
        return flat.view(shape)

    def copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of a tensor in a file, or the tensor itself where it is there already."""
        dtype = dtype or tensor.dtype
        if is_offloaded(tensor) and tensor.dtype == dtype:
            return tensor
        copied = self.empty(tensor.shape, dtype)
        source, place = tensor.detach().reshape(-1), copied.view(-1)
        for start in range(0, len(place), PIECE):
            place[start : start + PIECE].copy_(source[start : start + PIECE])
        let_go(copied)
        return copied

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        """Put the parameters and saved buffers of a module into files; what is shared stays shared."""
        for tensor in {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values():
            tensor.data = self.copy(tensor.data)


def is_offloaded(tensor: Tensor) -> bool:
    """Whether a tensor lies in a file that it can be written to."""
    return tensor.device.type == "cpu" and tensor.numel() > 0 and tensor.untyped_storage().filename is not None


def let_go(*tensors: Tensor) -> None:
    """Take the pages of offloaded tensors out of memory until they are used again; others are left as they are."""
    for tensor in tensors:
        if is_offloaded(tensor):
            storage = tensor.untyped_storage()
            let_go_of_pages(storage.data_ptr(), storage.nbytes())


@contextmanager
def let_go_after_calls(module: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Take what parts of a module have in files out of memory whenever they have run."""

    def after(part: nn.Module, *_: object) -> None:
        let_go(*part.parameters(), *part.buffers())

    hooks = [module.get_submodule(path).register_forward_hook(after) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _reserve(handle: int, size: int) -> None:
    """Take the room for a file: writing into a mapped one that finds none ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)
