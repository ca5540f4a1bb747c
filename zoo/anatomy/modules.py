"""Small questions about modules: sizes of a projection, configs, norms, tables, and which paths name one module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.anatomy.names import DECODER_LAYERS, ENCODER_LAYERS
from zoo.anatomy.parts import Part
from zoo.errors import Refused

EPSILONS = ("eps", "epsilon", "variance_epsilon", "norm_eps")  # what norms call what keeps them from dividing by 0


def features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a projection, or None where `module` is not one."""
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):
        if has(module, inputs) and has(module, outputs):
            sizes = getattr(module, inputs), getattr(module, outputs)
            if isinstance(sizes[0], int) and isinstance(sizes[1], int):
                return sizes
    return None


def has(module: nn.Module, name: str) -> bool:
    """As `hasattr`, for names that most modules do not have: there torch takes an exception to say no, and most of the time."""
    own = vars(module)
    if name in own or name in own["_parameters"] or name in own["_buffers"] or name in own["_modules"]:
        return True
    kind = type(module)
    asks = hasattr(kind, name) or kind.__getattr__ is not nn.Module.__getattr__
    return asks and hasattr(module, name)


def computes_as_named(module: nn.Module) -> bool:
    """Whether a linear layer does nothing more, so that another may stand for it: BitNet's and timm's padded ones do."""
    if has(module, "parametrizations"):  # its weight is computed at each call
        return False
    return not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward


def output_axis(module: nn.Module) -> int:
    """The axis of `module.weight` along which its outputs lie: 1 for a GPT-2 `Conv1D`, otherwise 0."""
    return 1 if hasattr(module, "nf") and not hasattr(module, "out_features") else 0


def container(path: str, others: Iterable[str]) -> str:
    """Return the highest ancestor of `path` that holds none of `others`."""
    steps = path.split(".")
    others = list(others)
    for depth in range(len(steps)):
        ancestor = ".".join(steps[:depth])
        if not any(inside(other, ancestor) for other in others):
            return ancestor
    return path


def sizes_of(module: nn.Module, part: Part) -> tuple[int, int]:
    """(in, out) of the projection that holds `part`."""
    projection = resolve(module, part.path)
    if isinstance(projection, Tensor):
        return projection.shape[-1], projection.shape[-2]
    return features(projection) or (0, 0)


def resolve(module: nn.Module, path: str) -> nn.Module | Tensor:
    """Return the module or the parameter that `path` names."""
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    parameter = owner._parameters.get(name)
    return parameter if parameter is not None else module.get_submodule(path)


@dataclass(frozen=True)
class Owner:
    """A module inside a block, and where it is."""

    path: str
    module: nn.Module

    def child(self, name: str) -> nn.Module | None:
        if name.partition(".")[0] not in self.module._modules:  # most names: an exception takes ten times as long
            return None
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            return None

    def at(self, name: str) -> str:
        return f"{self.path}.{name}".strip(".")


def inside(path: str, outer: str) -> bool:
    """Whether `path` is `outer` or lies below it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


def is_embedding(module: nn.Module) -> bool:
    return has(module, "num_embeddings") and isinstance(module.num_embeddings, int)


def looks_like_norm(module: nn.Module) -> bool:
    """Whether `module` normalises: beside its gain, where it has one, it keeps an epsilon; or it is a gain for each channel alone."""
    if next(module.children(), None) or features(module) or has(module, "kernel_size"):
        return False  # convolutions that standardise their weights keep an epsilon too
    own = {name: tuple(tensor.shape) for name, tensor in module._parameters.items() if tensor is not None}
    if own and "weight" not in own:  # an activation with numbers of its own (Apertus)
        return False
    if any(has(module, name) for name in (*EPSILONS, "normalized_shape")):
        return True
    return (
        bool(own) and own.keys() <= {"weight", "bias"} and len(set(own.values())) == len(own["weight"]) == 1
    )  # MobileBERT


def is_norm(module: nn.Module, width: int) -> bool:
    """Whether `module` normalises vectors of `width` entries, with a gain or without."""
    if not looks_like_norm(module):
        return False
    weight = module._parameters.get("weight")
    if weight is not None:
        return tuple(weight.shape) == (width,)
    return tuple(getattr(module, "normalized_shape", ())) == (width,)


def config_of(module: nn.Module, path: str) -> Any:
    """Return the config nearest above `path`: a tower's own, or the text part of a composite one."""
    steps = path.split(".") if path else []
    for depth in range(len(steps), -1, -1):
        config = getattr(module.get_submodule(".".join(steps[:depth])), "config", None)
        if config is not None:
            text = getattr(config, "get_text_config", None)
            return text() if callable(text) else config
    return None


def value_of(holder: Any, name: str) -> Any:
    """What a module or a config says under a name; None where it says nothing, or of each layer something of its own (Gemma 4)."""
    try:
        return getattr(holder, name, None)
    except RuntimeError:  # transformers' word for it
        return None


def sides(path: str) -> tuple[str, str]:
    """Whether a stack is a decoder's or else an encoder's, and the other of the two."""
    return ("decoder", "encoder") if "decoder" in path else ("encoder", "decoder")


def depths_of(side: str) -> tuple[str, ...]:
    """What configs of two sides call the depth of one."""
    return (ENCODER_LAYERS if side == "encoder" else DECODER_LAYERS).configs


def weight_out_in(module: nn.Module) -> Tensor:
    """Return the weight of a Linear, or of a transformers Conv1D, as (out, in)."""
    if isinstance(module, nn.Linear):
        return module.weight.detach()
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        weight_IO: Tensor = module.weight
        return weight_IO.detach().t()
    raise ValueError(f"cannot quantise a {type(module).__name__}: only Linear and transformers' Conv1D are supported")


def grouped_by_module(module: nn.Module, paths: Iterable[str]) -> list[list[str]]:
    """Group paths by the module they name: one group for each distinct module, in the order of the paths."""
    groups: dict[int, list[str]] = {}
    for path in paths:
        groups.setdefault(id(module.get_submodule(path)), []).append(path)
    return list(groups.values())


def require_sharers(module: nn.Module, paths: Iterable[str], *, stage: str) -> None:
    """Refuse a selection that holds some places of a shared module and leaves others out.

    For stages that put another module in its place: the places left out would keep the old one, and nothing be saved.
    """
    chosen = set(paths)
    modules = dict(module.named_modules(remove_duplicate=False))
    owners = {id(modules[path]): path for path in chosen if path in modules}
    for path, part in modules.items():
        if id(part) in owners and path not in chosen:
            raise Refused(
                f"{stage}: {owners[id(part)]} is shared with {path}, which is not in the target. "
                "Aim at every block that shares it."
            )
