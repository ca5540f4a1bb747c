"""Where tensors lie in memory, since a result can depend on it.

MKL rounds an fp32 matrix-vector product (one token through a linear layer) differently when the matrix begins off a
16-byte boundary, and safetensors files map tensors to any multiple of 8. So that a saved model computes what the model
in memory computed, to the last bit, tensors of a model begin where torch's own allocator would put them. The kernels for
weights of 16 bits give the same wherever a matrix lies (tests/zoo/tensors/test_alignment.py), so those stay mapped.

A table that is only looked up gives the same wherever it lies, too. Whatever is copied out of a mapped file is copied in
pieces, each let go of in the file once it is copied: a model that is loaded takes its own size and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.system.memory import MappedFiles

BYTES = 64  # what torch's CPU allocator gives
PIECE = 1 << 22  # bytes copied at a time


def aligned(tensor: Tensor, files: MappedFiles | None = None) -> Tensor:
    """Return the tensor, copied where it is not contiguous or does not begin at a multiple of `BYTES`.

    Args:
        files: those that it may be mapped from; nobody has written into it since.
    """
    if _lies_well(tensor):
        return tensor
    if files is None or not tensor.is_contiguous() or not files.hold(tensor.data_ptr()):
        return tensor.clone(memory_format=torch.contiguous_format)
    copied = torch.empty_like(tensor)
    step = PIECE // tensor.itemsize
    flat, places = tensor.view(-1), copied.view(-1)
    for start in range(0, len(flat), step):
        source, place = flat[start : start + step], places[start : start + step]
        place.copy_(source)
        files.let_go(source.data_ptr(), source.nbytes)
    return copied


def is_aligned(tensor: Tensor) -> bool:
    """Whether what a tensor is multiplied with gives the same as where loading would put it."""
    return _lies_well(tensor) or (tensor.is_contiguous() and tensor.dtype in (torch.bfloat16, torch.float16))


def _lies_well(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, nn.Parameter):  # such as one of shapes alone, which is nowhere
        return True
    return tensor.device.type != "cpu" or (tensor.is_contiguous() and tensor.data_ptr() % BYTES == 0)


def misaligned(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that lie where a result may depend on it."""
    table = _lookup(module)
    for parameter in module.parameters():
        if not is_aligned(parameter) and not (parameter is table and parameter.is_contiguous()):
            yield parameter


def _lookup(module: Any) -> Tensor | None:
    """The token table of a class of transformers that has another head: nothing is multiplied with it."""
    if not hasattr(module, "get_output_embeddings"):
        return None
    table, head = (
        getattr(part, "weight", None) for part in (module.get_input_embeddings(), module.get_output_embeddings())
    )
    plain = type(module.get_input_embeddings()).forward is nn.Embedding.forward
    return table if plain and head is not None and head is not table else None


@torch.no_grad()
def align(module: nn.Module, *, just_read: bool = False) -> None:
    """Align the tensors of a module in place; what is shared stays shared.

    Args:
        just_read: nobody has written into them since they were mapped from files.
    """
    files = MappedFiles() if just_read else None
    for parameter in misaligned(module):
        parameter.data = aligned(parameter.data, files)
    buffers: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = buffers.setdefault(id(buffer), aligned(buffer))
