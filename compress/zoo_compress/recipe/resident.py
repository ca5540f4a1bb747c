"""What the weights of a run's models hold of memory, and of disk where they are offloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.loading.locate import Located
from zoo.model.model import Model
from zoo.plugins.names import recognise
from zoo_compress.recipe.recipe import StageRequest


@dataclass(frozen=True)
class Weights:
    """The weights in memory. Those that are stored as they are run stay mapped, and the mapping lasts as long as any of them;
    of those that are offloaded there is what is being used.
    """

    loading: int = 0  # bytes, while the model is loaded
    mapped: Mapping[int, Any] = field(default_factory=dict)  # the skeleton's tensors, by id
    bytes: int = 0
    dtype: str = ""
    on_disk: int = 0  # bytes of files that they are kept in

    @classmethod
    def of(cls, original: Located, model: Model, *, offload: bool) -> Weights:
        whole, tensors = run_bytes(model), {id(t): t for t in model.tensors().values()}
        as_stored = original.weights != "random" and model.stored == model.dtype
        if not offload:
            return cls(whole, tensors, whole, model.dtype) if as_stored else cls(whole)
        used = _most_used(model)
        whole_first = not as_stored or (original.here and original.here.is_file() and recognise(original.here))
        return cls(whole if whole_first else used, tensors, used, model.dtype, on_disk=whole)

    def resident(self, model: Model) -> int:
        """Bytes that the weights of a model hold."""
        tensors = model.tensors().values()
        own = sum(t.numel() * t.element_size() for t in tensors if id(t) not in self.mapped)
        return own + (self.bytes if any(id(t) in self.mapped for t in tensors) else 0)

    def after(self, request: StageRequest) -> Weights:
        """Training runs on copies in float32, where the weights are not that already."""
        copied = request.compressor.trains and self.dtype != "float32"
        return replace(self, mapped={}, bytes=0) if copied else self


def _most_used(model: Model) -> int:
    """Bytes of weights that are used at a time: two blocks, or the largest tensor."""
    blocks = [
        sum(p.nbytes for p in model.module.get_submodule(block.path).parameters())
        for stack in model.anatomy.stacks.values()
        for block in stack.blocks
    ]
    return max(2 * max(blocks, default=0), *(tensor.nbytes for tensor in model.tensors().values()))


def run_bytes(model: Model) -> int:
    """Bytes of the weights of a model as it runs."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.tensors().values())
