"""What `zoo inspect` shows: the structure of a model, read from its skeleton without its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from zoo.anatomy.coverage import left_out, said
from zoo.anatomy.parts import Anatomy, Block
from zoo.loading.load import load
from zoo.model.lineage import State


def describe(name_or_path: str, *, weights: str = "auto") -> dict[str, Any]:
    """Describe the structure of a model as plain JSON data; `weights` as for `zoo.load`."""
    model = load(name_or_path, device="meta", weights=weights)
    anatomy, state = model.anatomy, model.state()
    return {
        "name": model.spec.name,
        "family": model.spec.family,
        "task": model.spec.task,
        "params": model.params,
        "bytes": model.bytes,
        "dtype": model.dtype,
        "stored": model.stored,
        "embedding": anatomy.embedding,
        "head": anatomy.head,
        "tied": anatomy.tied,
        "naming": _naming(anatomy),
        "stacks": [
            {
                "name": stack.name,
                "path": stack.path,
                "width": stack.width,
                "blocks": [_block(i, block, state) for i, block in enumerate(stack.blocks)],
            }
            for stack in anatomy.stacks.values()
        ],
        "layers": [
            {"name": name, "count": len(paths), "traits": _traits(paths, state)}
            for name, paths in anatomy.layers.items()
        ],
        "left_out": said(left_out(model, "all")) if anatomy.stacks or anatomy.layers else "",
        "lineage": [{"use": stage.use, "options": stage.options} for stage in model.lineage],
    }


def _naming(anatomy: Anatomy) -> str | None:
    """Which of several stacks a target named "language" is."""
    names = list(anatomy.stacks)
    if len(names) < 2 or "language" not in names:
        return None
    if "encoder" in names:
        return "language is the decoder, whichever of encoder and decoder is deeper"
    return "language is the stack that reads or writes text"


def _block(index: int, block: Block, state: State) -> dict[str, Any]:
    attention, ffn = block.attention, block.ffn
    facts: dict[str, Any] = {"block": index, "traits": _traits(block.projections(), state)}
    if attention:
        facts |= {"heads": attention.heads, "kv_heads": attention.kv_heads, "head_dim": attention.head_dim}
    if ffn:
        facts["ffn"] = ffn.width
    undivided = Counter(layer.part or "other" for layer in block.linears for _ in layer.projections)
    if undivided or block.all_routers:  # named, but without heads or channels
        facts["other_layers"] = {**undivided, **({"router": len(block.all_routers)} if block.all_routers else {})}
    return facts


def _traits(paths: Iterable[str], state: State) -> str:
    return ", ".join(
        dict.fromkeys(f"{t.kind} ({t.detail})" if t.detail else t.kind for path in paths for t in state.get(path, ()))
    )
