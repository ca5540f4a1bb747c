"""What packed layers share, whatever their format: scales that keep their dtype, codes that stay aligned."""

# T rows (batch and sequence flattened), I in features, O out features, V vocabulary, D width, Z blocks of 4-bit codes

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from zoo.tensors.alignment import aligned  # the int8 kernel loads aligned vectors
from zoo.tensors.finite import all_finite


def check_finite(weight_OI: Tensor) -> None:
    """Raise ValueError naming the first row that holds a nan or an infinity."""
    if all_finite(weight_OI):
        return
    bad_O = (~torch.isfinite(weight_OI)).sum(dim=1)
    row = int(bad_O.nonzero()[0])
    raise ValueError(
        f"cannot quantise: row {row} of the weight has {int(bad_O[row])} non-finite values (nan or infinity), "
        f"{int((bad_O > 0).sum())} of {len(bad_O)} rows are affected. Repair or reload the weight first."
    )


def copy_bias(module: nn.Module) -> nn.Parameter | None:
    """Copy a module's bias, which stays in floating point."""
    bias_O = module.bias
    if not isinstance(bias_O, Tensor):
        return None
    return nn.Parameter(bias_O.detach().clone(), requires_grad=bias_O.requires_grad)


class Packed(nn.Module):
    """What the packed layers share: scales stay fp32 in `.half()` and the like, packed codes stay aligned on load."""

    zoo_bits: ClassVar[int]
    # packed buffer -> weights per stored entry; zoo.model.model counts parameters by it
    zoo_packed: ClassVar[dict[str, int]]
    exact: bool = False  # whether only kernels are taken that round no product (`kernels.py`)

    def forget_layout(self) -> None:
        """Drop what was made of the codes to multiply with; the next call makes it again."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                # A rounded scale would change every weight of its row. A meta tensor has no values to keep.
                restored = torch.empty_like(new, dtype=old.dtype) if old.is_meta else old.to(new.device)
                self._buffers[name] = restored
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                self._buffers[name] = aligned(buffer)


class ReadWeight(nn.Module):
    """A packed layer whose weight the code around it reads itself: widened at each read, in the dtype it had."""

    read_dtype: torch.dtype

    @property
    def weight(self) -> Tensor:
        widened: Tensor = self.dequantize(self.read_dtype)  # type: ignore[operator]
        return widened

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0, dtype=self.read_dtype))
        self.read_dtype = probe.dtype if probe.is_floating_point() else self.read_dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def with_weight(packed: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let the weight of a packed layer be read, where its format can widen it."""
    if hasattr(packed, "dequantize"):
        packed.__class__ = _with_weight(type(packed))  # type: ignore[arg-type]
        packed.read_dtype = dtype  # type: ignore[assignment]
    return packed


@lru_cache
def _with_weight(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (ReadWeight, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
