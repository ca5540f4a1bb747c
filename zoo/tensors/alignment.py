"""Where tensors lie in memory, since a result can depend on it.

MKL rounds an fp32 matrix-vector product (one token through a linear layer) differently when the matrix begins off a
16-byte boundary, and safetensors files map tensors to any multiple of 8. So that a saved model computes what the model
in memory computed, to the last bit, tensors of a model begin where torch's own allocator would put them. The kernels for
weights of 16 bits give the same wherever a matrix lies (tests/zoo/tensors/test_alignment.py), so those stay mapped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BYTES = 64  # what torch's CPU allocator gives


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, copied where it is not contiguous or does not begin at a multiple of `BYTES`."""
    if _lies_well(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def is_aligned(tensor: Tensor) -> bool:
    """Whether `align` leaves a tensor as it is."""
    return _lies_well(tensor) or (tensor.is_contiguous() and tensor.dtype in (torch.bfloat16, torch.float16))


def _lies_well(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, nn.Parameter):  # such as one of shapes alone, which is nowhere
        return True
    return tensor.device.type != "cpu" or (tensor.is_contiguous() and tensor.data_ptr() % BYTES == 0)


@torch.no_grad()
def align(module: nn.Module) -> None:
    """Align the tensors of a module in place, where weights of 16 bits may lie anywhere; what is shared stays shared."""
    for parameter in module.parameters():
        if not is_aligned(parameter):
            parameter.data = aligned(parameter.data)
    buffers: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = buffers.setdefault(id(buffer), aligned(buffer))
