"""The anatomy of a pipeline: the stacks and layers of every component, under its name."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from torch import nn

from zoo.anatomy.detect import detect, plain_layers, with_linears
from zoo.anatomy.modules import features, output_axis
from zoo.anatomy.parts import Anatomy, Attention, Block, Part, Stack
from zoo.family.diffusion.latents import AUTOENCODERS

Thing = TypeVar("Thing")


def pipeline_anatomy(module: nn.Module) -> Anatomy:
    """Find the stacks of every component, under its name.

    A UNet has one for each list of transformer blocks: "unet.down.0" (where a stage has several, "unet.down.0.0" and
    "unet.down.0.1"), "unet.mid", "unet.up.0". Its convolutions and other linear layers are regions of the same names,
    "unet.in" and "unet.out"; those of the other components are regions of their names.
    """
    stacks: dict[str, Stack] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for name, child in module.named_children():
        if hasattr(child, "down_blocks") and hasattr(child, "up_blocks") and name not in AUTOENCODERS:
            child_stacks, regions = _unet(child)
        elif name in AUTOENCODERS:
            child_stacks, regions = {}, {"": plain_layers(child, "")}
        else:
            child_stacks, regions = _others(child)
        stacks |= {
            _join(name, key): replace(_below(stack, name), name=_join(name, key)) for key, stack in child_stacks.items()
        }
        layers |= {_join(name, key): _below(paths, name) for key, paths in regions.items() if paths}
    return Anatomy(stacks=stacks, layers=layers)


def _others(child: nn.Module) -> tuple[dict[str, Stack], dict[str, tuple[str, ...]]]:
    """Stacks and regions of a text encoder or a transformer denoiser, its main stack under no name of its own."""
    anatomy = detect(child)
    main = anatomy.stack().name if anatomy.stacks else ""
    stacks = {"" if key == main else key: stack for key, stack in anatomy.stacks.items()}
    return stacks, {"": plain_layers(child, "", skip=[stack.path for stack in anatomy.stacks.values()])}


def _unet(unet: nn.Module) -> tuple[dict[str, Stack], dict[str, tuple[str, ...]]]:
    """Stacks and regions of a UNet by stage: "down.0", "mid", "up.0", "in", "out"."""
    stages = {f"down.{i}": f"down_blocks.{i}" for i in range(len(unet.down_blocks))}  # type: ignore[arg-type]
    stages |= {"mid": "mid_block"} | {f"up.{i}": f"up_blocks.{i}" for i in range(len(unet.up_blocks))}  # type: ignore[arg-type]
    stacks: dict[str, Stack] = {}
    layers = {"in": plain_layers(unet, "", skip=["down_blocks", "mid_block", "up_blocks", "conv_out"])}
    for name, path in stages.items():
        stage = unet.get_submodule(path)
        lists = [f"{path}.{inner}" for inner, _ in stage.named_modules() if inner.endswith("transformer_blocks")]
        for number, list_path in enumerate(lists):
            key = name if len(lists) == 1 else f"{name}.{number}"
            # no width: cross-attention reads the residual too
            stacks[key] = Stack(key, list_path, _blocks(unet, list_path))
        layers[name] = plain_layers(unet, path, skip=lists)
    return stacks, layers | {"out": plain_layers(unet, "conv_out")}


def _blocks(unet: nn.Module, path: str) -> tuple[Block, ...]:
    parent, _, name = path.rpartition(".")
    around = unet.get_submodule(parent)
    stack = next((stack for stack in detect(around).stacks.values() if stack.path == name), None)
    blocks = stack.blocks if stack else tuple(Block(f"{name}.{i}") for i in range(len(unet.get_submodule(path))))  # type: ignore[arg-type]
    crossed = (replace(_below(block, parent), cross=_cross(unet, _join(parent, block.path))) for block in blocks)
    return tuple(with_linears(unet, block) for block in crossed)


def _cross(unet: nn.Module, path: str) -> Attention | None:
    """Read `attn2`, the attention to the text, where its projections have shapes that agree."""
    attention = getattr(unet.get_submodule(path), "attn2", None)
    if attention is None:
        return None
    names = ("to_q", "to_k", "to_v", "to_out.0")
    projections = [attention.get_submodule(name) for name in names]
    sizes = [features(projection) for projection in projections]
    head_dim = getattr(attention, "head_dim", None) or (sizes[0] or (0, 0))[1] // getattr(attention, "heads", 1)
    if not all(sizes) or not head_dim:
        return None
    (_, q), (_, k), (_, v), (o, _) = (size for size in sizes if size)
    if q != o or k != v or q % head_dim or k % head_dim:
        return None
    at = f"{path}.attn2"
    axes = [*(output_axis(projection) for projection in projections[:3]), 1 - output_axis(projections[3])]
    to_q, to_k, to_v, to_out = (
        Part(f"{at}.{name}", axis, size // head_dim, head_dim, stride=head_dim)
        for name, axis, size in zip(names, axes, (q, k, v, o), strict=True)
    )
    return Attention(at, to_q, to_k, to_v, to_out, q // head_dim, k // head_dim, head_dim)


_PATHS = ("path", "norms", "embeddings", "head", "readers", "writers", "router")


def _below(thing: Thing, prefix: str) -> Thing:
    """Copy an anatomy, or a part of one, with `prefix` before every path in it."""
    copy: Any = thing
    if isinstance(thing, str):
        copy = _join(prefix, thing)
    elif isinstance(thing, tuple):
        copy = tuple(_below(member, prefix) for member in thing)
    elif is_dataclass(thing) and not isinstance(thing, type):
        values = {field.name: getattr(thing, field.name) for field in fields(thing)}
        copy = replace(
            copy,
            **{
                name: _below(value, prefix)
                for name, value in values.items()
                if name in _PATHS or is_dataclass(value) or isinstance(value, tuple)
            },
        )
    return cast(Thing, copy)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")
