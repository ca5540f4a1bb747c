"""One model of every module file of timm: the smallest, at a small picture where the class lets it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from architectures import AIMED, NotBuilt

TRIED = 6  # models of a module that are built on the meta device to find the smallest
SMALL_WORDS = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxtiny",
    "xxs",
    "tiny",
    "mini",
    "xs",
    "_t",
    "small",
    "_s",
    "18",
    "10",
    "b0",
    "_0",
)
# Tried in turn: sizes of Swin, ViT and ConvNeXt, which many take, and of Hiera, whose picture is large; then that of the
# picture alone, or nothing.
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"num_classes": 10, "img_size": 64, "embed_dim": 24, "depths": [2, 2, 2, 2]},
    {"num_classes": 10, "img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3},
    {"num_classes": 10, "depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    {"num_classes": 10, "embed_dim": 24, "stages": [1, 2, 2, 1], "global_att_blocks": []},
    {"num_classes": 10, "img_size": 64},
    {"num_classes": 10, "img_size": 224},
    {"num_classes": 10},
)
LARGEST = 60_000_000


@cache
def modules() -> tuple[str, ...]:
    """The module files of timm that register models."""
    from timm.models._registry import _module_to_models

    return tuple(sorted(_module_to_models))


def small_model(module: str) -> tuple[str, Any, dict[str, dict[str, Any]]]:
    """The name by which zoo loads the smallest model of a module, the library's own, and the options that differ.

    Raises:
        NotBuilt: timm does not build one.
    """
    import timm

    import zoo
    from zoo.errors import ZooError

    name, count = _smallest(module)
    if count > LARGEST:
        raise NotBuilt(f"the smallest model tried, {name}, has {count:,} parameters")
    arguments = next((given for given in ARGUMENTS if _runs(name, given)), None)
    if arguments is None:
        raise NotBuilt(f"{name} does not run on one picture")
    reference = f"timm:{name}?" + "&".join(
        f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in arguments.items()
    )
    library = timm.create_model(name, pretrained=False, **arguments).eval()
    try:
        library.load_state_dict(zoo.load(reference, weights="random").module.state_dict())
    except (ZooError, RuntimeError):  # the checks will say it
        library = None
    blocks = zoo.load(reference, device="meta").anatomy.stacks if library is not None else {}
    return reference, _Logits(library) if library is not None else None, _targets(bool(blocks))


def _targets(has_blocks: bool) -> dict[str, dict[str, Any]]:
    """Stages aim at what there is: blocks under "vision", or everything."""
    target = "vision" if has_blocks else "all"
    ffn = {"ffn": 0.25, "heads": None} if has_blocks else {"ratio": 0.25, "ffn": None, "heads": None}
    return {use: {"target": target} for use in AIMED} | {"prune.structured": {**ffn, "target": target}}


class _Logits:
    """The library's model, called as those of transformers are."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, **batch: torch.Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.module(next(iter(batch.values()))))


def _smallest(module: str) -> tuple[str, int]:
    import timm

    names = [str(name) for name in timm.list_models(module=module)]
    if not names:
        raise NotBuilt("timm lists no model of this module")
    ranked = sorted(
        names, key=lambda name: (min((i for i, word in enumerate(SMALL_WORDS) if word in name), default=99), len(name))
    )
    return min(((name, _count(name)) for name in ranked[:TRIED]), key=lambda pair: pair[1])


def _count(name: str) -> int:
    import timm

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, pretrained=False, num_classes=10).parameters())
    except Exception:  # some classes compute with values as they are built
        return sum(p.numel() for p in timm.create_model(name, pretrained=False, num_classes=10).parameters())


@torch.no_grad()
def _runs(name: str, arguments: dict[str, Any]) -> bool:
    import timm

    try:
        module = timm.create_model(name, pretrained=False, **arguments).eval()
        side = arguments.get("img_size") or module.default_cfg["input_size"][-1]
        return tuple(module(torch.zeros(1, module.default_cfg["input_size"][0], side, side)).shape) == (1, 10)
    except Exception:  # whatever a class says of a size that does not fit
        return False
