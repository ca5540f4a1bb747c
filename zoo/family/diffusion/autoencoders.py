"""Whether two pipelines have one autoencoder, so that a teacher's predictions are of the student's latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.family.diffusion.latents import AUTOENCODERS, part
from zoo.model.model import Model

ENCODES = ("encoder.", "quant_conv.")  # tensors that make latents; the decoder may be another
# of configs, what does not change latents, or is seen in the shapes of the tensors that make them
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)  # one of the two may have been rounded
UNCOMPARED = ("sample_size", "force_upcast", "block_out_channels", "layers_per_block", "up_block_types")


def difference(student: Model, teacher: Model) -> str:
    """Say where the autoencoders of two pipelines make different latents; "" where nowhere that can be seen.

    A skeleton's weights are read from its files. A student that stages have changed may be taught by what it was made
    of; with another teacher its weights are compared as they were before, where the original's files are here, and else
    where no stage has touched them.
    """
    mine, theirs = (_config(model) for model in (student, teacher))
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            return f"{key} is {mine.get(key)!r} and {theirs.get(key)!r}"
    changed = _changed(student) or _changed(teacher)
    weights = [_weights(model) for model in (student, teacher)]
    if (changed or None in weights) and _one_source(student, teacher):
        return ""
    if None in weights:
        drawn = [model.spec.name for model in (student, teacher) if model.origin == "random"]
        return f"the weights of {drawn[0]} are random" if drawn else ""
    return _differing_tensor(*weights, changed=changed)  # type: ignore[arg-type]


def _config(model: Model) -> dict[str, Any]:
    autoencoder = part(model.module, AUTOENCODERS)
    plain = {key: value for key, value in autoencoder.config.items() if key[0] != "_" and key not in UNCOMPARED}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
    return {"class": type(autoencoder).__name__, **listed}


def _changed(model: Model) -> bool:
    """Whether stages have been applied to a model since the original that its source names."""
    return len(model.lineage) > int(model.source.get("stages", 0))


def _one_source(student: Model, teacher: Model) -> bool:
    keys = ("name", "weights", "seed")
    mine, theirs = (
        [model.origin == "random", *(model.source.get(key) for key in keys)] for model in (student, teacher)
    )
    return mine == theirs and bool(student.source)


def _weights(model: Model) -> Mapping[str, torch.Tensor] | None:
    """The tensors that make latents, from memory or from the files of the model or of its original; None where not here."""
    name = next(name for name, _ in model.module.named_children() if name in AUTOENCODERS)
    if not _changed(model) and model.device.type != "meta":
        tensors = model.module.get_submodule(name).state_dict()
        return {key: tensor.cpu() for key, tensor in tensors.items() if key.startswith(ENCODES)}
    from safetensors import safe_open

    for folder in (model.source.get("name", "") if _changed(model) else "", model.origin):
        files = sorted((Path(folder) / name).glob("*.safetensors")) if folder else []
        if files:
            tensors = {}
            for file in files:
                with safe_open(file, framework="pt") as opened:
                    tensors |= {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(ENCODES)}  # noqa: SIM118
            return tensors
    return None


def _differing_tensor(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], *, changed: bool) -> str:
    """Name the first tensor that differs; of a model that stages have changed, only if none is as it was."""
    differing, alike = [], 0
    for name in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(name), theirs.get(name)
        if one is None or other is None or one.shape != other.shape:
            differing += [] if changed else [name]
            continue
        if not any(torch.equal(one.to(dtype), other.to(dtype)) for dtype in PRECISIONS):
            differing.append(name)
        elif one.numel() > 1 and bool((one != one.flatten()[0]).any()):  # fresh norms are all alike
            alike += 1
    return "" if not differing or (changed and alike) else f"{differing[0]} differs"
