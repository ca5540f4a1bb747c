"""Numbers of blocks: when some blocks of a stack go, what is numbered by block follows, in the modules and in the config.

- A block's number (`layer_idx`, `layer_id`) is its place in the key-value cache.
- The config has the depth, lists with an entry a block and lists of block numbers; a cache is made from them, and masks chosen.
  Lists that a config class computes from numbers (every eighth block attends) are read again, and must be those of the blocks
  that are kept.
- Tables have columns for each block (the token embeddings that Gemma 3n gives every block).
- The first block holds what only it has, and all use: T5's relative positions, RWKV's first norm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.anatomy.modules import config_of, depths_of, inside, is_embedding, sides
from zoo.errors import ArtifactError, Refused, one_line

NUMBERS = ("layer_idx", "layer_id")
# config lists with an entry a block, beside those with "layer" in their name
ENTRY_LISTS = (
    "activation_sparsity_pattern",
    "attention_window",
    "indexer_types",
    "intermediate_size",
    "sliding_windows",
    "swiglu_limits",
    "swiglu_limits_shared",
)
# config lists that hold block numbers, not an entry a block
INDEX_LISTS = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "local_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)
# what the first block holds for all of them: part -> the flag of the module that holds it
FIRST_ALONE = {
    "relative_attention_bias": "has_relative_attention_bias",
    "global_relative_attention_bias": "has_relative_attention_bias",
    "pre_ln": "",
}


def keep_blocks(module: nn.Module, path: str, indices: list[int], *, depth: int) -> None:
    """Drop the other blocks of the list at `path`, and let what is numbered by block follow.

    Raises:
        ArtifactError: a record that is read keeps blocks that are not there, or not in their order.
    """
    if not indices or indices != sorted(set(indices)) or not set(indices) <= set(range(depth)):
        raise ArtifactError(f"inherit cannot have kept blocks {indices} of {depth} at {path}.")
    configs = list(_configs(module, path, depth=depth))
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) == depth
    for config in configs:
        _cut_tables(module, path, config, indices, depth=depth)
        _cut_config(config, path, indices, depth=depth)
    _set_depth_elsewhere(module, path, configs, len(indices), depth=depth)
    _hand_on(blocks[0], blocks[indices[0]])
    for index in sorted(set(range(depth)) - set(indices), reverse=True):
        del blocks[index]
    for new, old in enumerate(indices):
        _renumber(blocks[new], old, new)


def require_numbering(module: nn.Module, path: str, indices: Sequence[int], *, depth: int, stage: str) -> None:
    """Refuse to keep blocks for which the config would then say other things than before.

    Raises:
        Refused: names the config's class, what it computes, and what can be kept.
    """
    config = next(_configs(module, path, depth=depth), None)
    if config is None:
        return
    before, shallow = _computed(config, depth), copy.deepcopy(config)
    _cut_config(shallow, path, indices, depth=depth)
    after = _computed(shallow, len(indices))
    for name, entries in before.items():
        wanted = [entries[i] for i in indices]
        if not _alike(wanted, after.get(name, [])):
            raise Refused(
                f"{stage}: {type(config).__name__} computes {name} from the number of a block, and blocks that move would be "
                "taken for others. Keep blocks that leave the pattern as it is, such as the first ones."
            )


def _alike(wanted: list[Any], found: list[Any]) -> bool:
    """Whether two lists say the same of blocks; one that stores its keys for others may do so for none."""
    stores = (None, "store")
    read = "reuse" in wanted
    return len(wanted) == len(found) and all(
        a == b or (a in stores and b in stores and not (read and b == "store"))
        for a, b in zip(wanted, found, strict=True)
    )


def _renumber(block: nn.Module, old: int, new: int) -> None:
    """Give every part of a block its new number; where it has several places in the cache (LongCat), each the one that follows."""
    parts = [part for part in block.modules() if part is not block]
    places = {number for part in parts if isinstance(number := getattr(part, "layer_idx", None), int)}
    several = len(places) if places == set(range(len(places) * old, len(places) * (old + 1))) else 1
    for part in parts if several > 1 else ():
        if getattr(part, "layer_idx", None) in places:
            part.layer_idx += several * (new - old)  # type: ignore[operator, assignment]
    for part in [block] if several > 1 else block.modules():
        for name in NUMBERS:
            if getattr(part, name, None) == old:
                setattr(part, name, new)


def _hand_on(first: nn.Module, next_first: nn.Module) -> None:
    """Move what only the first block holds to the one that takes its place."""
    owners = dict(next_first.named_modules())
    for path, part in list(first.named_modules()):
        owner = owners.get(path)
        for name, flag in FIRST_ALONE.items():
            if owner is not None and name in part._modules and owner._modules.get(name) is None:
                setattr(owner, name, part._modules[name])
                if flag:
                    setattr(owner, flag, True)


def _cut_tables(module: nn.Module, path: str, config: Any, indices: Sequence[int], *, depth: int) -> None:
    """Cut what has columns for each block to those of the kept ones."""
    size = getattr(config, "hidden_size_per_layer_input", None)
    if not isinstance(size, int) or not size:
        return
    kept = (torch.tensor(indices)[:, None] * size + torch.arange(size)).flatten()
    for name, part in module.named_modules():
        if "per_layer" not in name.rpartition(".")[2] or inside(name, path):
            continue
        axis, attribute = (-1, "embedding_dim") if is_embedding(part) else (0, "out_features")
        if getattr(part, attribute, None) == depth * size:
            _cut_columns(part, axis, kept, depth * size)
            setattr(part, attribute, len(kept))


def _cut_columns(part: nn.Module, axis: int, kept: Tensor, size: int) -> None:
    for store in (part._parameters, part._buffers):
        tensors: dict[str, Any] = store
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dim() and tensor.shape[axis] == size:
                cut = tensor.detach().index_select(axis % tensor.dim(), kept.to(tensor.device))
                tensors[name] = nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut


# --- configs ----------------------------------------------------------------------------------------------------------


def _configs(module: nn.Module, path: str, *, depth: int) -> Iterator[Any]:
    """Yield the config that describes the stack, and every equal copy of it that other modules hold."""
    nearest_config = config_of(module, path)
    # those of diffusers are mappings, which are never changed, and whose depths are of other things than blocks of a list
    if isinstance(nearest_config, Mapping) or not _depth_names(nearest_config, path, depth):
        return
    same = nearest_config.to_dict()
    yield from (config for config in _of_class(module, type(nearest_config)) if config.to_dict() == same)


def _of_class(module: nn.Module, kind: type) -> Iterator[Any]:
    """Yield the configs of a class that the parts of a module hold, and those in their configs, each once."""
    seen = set()
    for part in module.modules():
        own = getattr(part, "config", None)
        for config in (own, *(vars(own).values() if hasattr(own, "to_dict") else ())):
            if id(config) not in seen and type(config) is kind:
                seen.add(id(config))
                yield config


def _depth_names(config: Any, path: str, depth: int) -> list[str]:
    """What a config calls the depth of the stack: that of a decoder has another name than that of an encoder."""
    side, other = sides(path)
    names = [name for name in depths_of(side) if getattr(config, name, None) == depth]
    general = "num_hidden_layers"
    elsewhere = other in (getattr(config, "attribute_map", None) or {}).get(general, "")
    computed = bool(names) and isinstance(getattr(type(config), general, None), property)  # ProphetNet's cannot be set
    if elsewhere or computed or getattr(config, general, None) != depth:
        # LongCat's layers are two each of what its num_hidden_layers counts
        return names or [name for name in ("num_layers",) if getattr(config, name, None) == depth]
    return [*names, general]


def _set_depth_elsewhere(module: nn.Module, path: str, configs: Sequence[Any], shallow: int, *, depth: int) -> None:
    """Set the depth in configs that tell of the stack beside others: T5's own, of which its decoder has a changed copy."""
    side, other = sides(path)
    if not configs or side not in path:
        return
    cut = set(map(id, configs))
    for config in _of_class(module, type(configs[0])):
        if id(config) in cut:
            continue
        names = list(depths_of(side))
        if not getattr(config, "is_decoder", False) and any(hasattr(config, name) for name in depths_of(other)):
            names += ["num_hidden_layers"] if side == "encoder" else []
        for name in names:
            if getattr(config, name, None) == depth and not isinstance(getattr(type(config), name, None), property):
                setattr(config, name, shallow)


def _cut_config(config: Any, path: str, indices: Sequence[int], *, depth: int) -> None:
    """Set the depth, and cut what has an entry a block to the kept ones."""
    names = _depth_names(config, path, depth)
    overrides = {int(index): value for index, value in (config.to_dict().get("per_layer_config") or {}).items()}
    for name, value in list(vars(config).items()):
        if name in INDEX_LISTS and value is not None:
            setattr(config, name, [indices.index(index) for index in value if index in indices])
        elif ("layer" in name or name in ENTRY_LISTS) and isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, name, type(value)(value[index] for index in indices))
    if sharers := getattr(config, "num_kv_shared_layers", 0):  # the last ones, which read the keys of others
        config.num_kv_shared_layers = sum(index >= depth - sharers for index in indices)
    for name in names:
        setattr(config, name, len(indices))
    if overrides:  # what some blocks have instead of what the config says of all
        config.per_layer_config = {indices.index(index): overrides[index] for index in indices if index in overrides}


def _computed(config: Any, depth: int) -> dict[str, list[Any]]:
    """The lists with an entry a block that the config's class computes."""
    lists: dict[str, list[Any]] = {}
    for kind in type(config).__mro__:
        if (
            kind.__module__ == "transformers.configuration_utils"
        ):  # what all configs have; it warns of what is deprecated
            continue
        for name in [name for name, value in vars(kind).items() if isinstance(value, property)]:
            try:
                value = getattr(config, name)
            except Exception as error:  # whatever a class says of numbers that do not fit together
                value = [one_line(error)] * depth
            if isinstance(value, list | tuple) and len(value) == depth:
                lists[name] = list(value)
    return lists
