"""Feed-forward layers, dense and of stacked experts, found by names and believed where the shapes agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from zoo.anatomy.attention import has_more
from zoo.anatomy.modules import features, output_axis
from zoo.anatomy.parts import FFN, Part

if TYPE_CHECKING:
    from zoo.anatomy.modules import Owner


GATED_FFN = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
FUSED_FFN = (("gate_up_proj", "down_proj"), ("Wi", "Wo"), ("net.0.proj", "net.2"))
PLAIN_FFN = (
    ("c_fc", "c_proj"),
    ("fc1", "fc2"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate.dense", "output.dense"),
    ("up_proj", "down_proj"),
    ("lin1", "lin2"),
    ("linear1", "linear2"),
    ("fc_in", "fc_out"),
    ("wi", "wo"),
    ("ffn", "ffn_output"),
    ("net.0.proj", "net.2"),
)


def read_ffn(owner: Owner, block: nn.Module) -> FFN | None:
    """Read `owner` as a dense feed-forward layer, or return None."""
    ffn: FFN | None = None
    if not owner.module._modules:  # most
        return None
    for names in (*GATED_FFN, *FUSED_FFN, *PLAIN_FFN):
        if all(owner.child(name) is not None for name in names):
            ffn = _ffn_of(owner, names, fused=names in FUSED_FFN or hasattr(owner.module, "interleaved"))
            if ffn:
                break
    if ffn is None:
        return None
    around = any(
        owner.child(name) for name in ("intermediate.dense", "ffn_output")
    )  # BERT, ALBERT: a layer, attention too
    alone = owner.module is not block and not around
    return None if alone and has_more(owner, set(ffn.projections)) else ffn


def _ffn_of(owner: Owner, names: Sequence[str], *, fused: bool) -> FFN | None:
    parts = [part for name in names if (part := owner.child(name)) is not None]
    sizes = [size for part in parts if (size := features(part)) is not None]
    if len(sizes) != len(names):
        return None
    (up_in, up_out), (inner, out) = sizes[-2], sizes[-1]
    if up_in != out or up_out != inner * (2 if fused else 1) or (len(sizes) == 3 and sizes[0] != sizes[1]):
        return None
    up_axis = output_axis(parts[-2])
    down = Part(owner.at(names[-1]), 1 - output_axis(parts[-1]), inner)
    up = Part(owner.at(names[-2]), up_axis, inner)
    if fused and getattr(owner.module, "interleaved", False):  # of ours (Phi-3-small): gate and up by turns
        return FFN(owner.path, replace(up, offset=1, stride=2), down, replace(up, stride=2))
    if fused:  # first half gate, second half up
        return FFN(owner.path, Part(up.path, up_axis, inner, offset=inner), down, up)
    gate = Part(owner.at(names[0]), output_axis(parts[0]), inner) if len(names) == 3 else None
    return FFN(owner.path, up, down, gate)


def read_experts(owner: Owner, owners: Sequence[Owner]) -> FFN | None:
    """Read the stacked experts of transformers 5: gate_up_proj (experts, 2 inner, d), down_proj (experts, d, inner)."""
    own = owner.module._parameters
    gate_up, down = own.get("gate_up_proj"), own.get("down_proj")
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return None
    if getattr(owner.module, "is_transposed", False) or not getattr(owner.module, "is_concatenated", True):
        return None
    experts, width, inner = down.shape
    if tuple(gate_up.shape) != (experts, 2 * inner, width) or _has_other_parameters(owner.module):
        return None
    path = owner.at("gate_up_proj")
    around = next((other for other in owners if other.path == owner.path.rpartition(".")[0]), None)
    return FFN(
        path=owner.path,
        up=Part(path, 1, inner, offset=inner),
        down=Part(owner.at("down_proj"), 2, inner),
        gate=Part(path, 1, inner),
        experts=experts,
        router=_router(around, experts, width) if around else None,
    )


def _has_other_parameters(module: nn.Module) -> bool:
    known = {"gate_up_proj", "down_proj"}
    return any(name not in known for name, _ in module.named_parameters())


def _router(around: Owner, experts: int, width: int) -> str | None:
    for name, part in around.module.named_modules():
        weight = part._parameters.get("weight")
        if weight is not None and tuple(weight.shape) == (experts, width):
            return around.at(name)
    return None
