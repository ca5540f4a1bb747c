"""What passes of one model have to agree in: a sample alone and in company, a text and its beginning, with a cache and without.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.testing.check import Skipped, require
from zoo.testing.exact import name_of

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.tensors.batch import Batch

CLOSE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}  # of the largest output: sums in another order
TOKENS, LATER = 12, 3  # of a text, and how many of them are read one by one
LONGEST = 2048  # tokens of a text that fills the context


def check_samples(model: Model) -> None:
    """Check that what is computed of a sample does not depend on those beside it."""
    import torch

    batch = model.family.example(model, batch=2)
    if any(len(tensor) != 2 for tensor in batch.values()):
        raise Skipped("its example has no entry for each sample")
    with torch.no_grad():
        together = model.family.forward(model, batch)
        for i in range(2):
            alone = model.family.forward(model, {name: tensor[i : i + 1] for name, tensor in batch.items()})
            require(
                _alike(model, together[i : i + 1], alone),
                f"{name_of(model)}: what `forward` gives for a sample depends on those beside it in the batch",
            )


def check_padding(model: Model) -> None:
    """Check that of two prompts that are read together, each is read as it is alone, padding left out."""
    import torch

    from zoo.family.task import task_of
    from zoo.family.text.readers import keeps_no_cache, names_of, reader_of
    from zoo.family.text.task import TextTask

    task = task_of(model)
    if not isinstance(task, TextTask) or not (task.writes and task.text_only):
        raise Skipped(f"models of the task {model.spec.task} do not write texts beside each other")
    if "attention_mask" not in names_of(model):
        raise Skipped("its module names no attention_mask, so that prompts are read one after the other")
    ids = model.family.example(model, batch=2, size=TOKENS)["input_ids"].tolist()
    prompts = [ids[0], ids[1][: -2 * LATER]]

    def read(some: list[list[int]]) -> torch.Tensor:
        reader = reader_of(model, some, {}, 0, caches=not keeps_no_cache(model), inference=False)
        logits = [reader.logits()]
        reader.append([prompt[0] for prompt in some], [False] * len(some))
        return torch.stack([*logits, reader.logits()], dim=1)

    require(
        _alike(model, read(prompts), torch.cat([read([prompt]) for prompt in prompts])),
        f"{name_of(model)}: prompts of several lengths, read together, give other logits than each alone; its module "
        "names `attention_mask`, and has to leave out what is padding there, and to count positions without it",
    )


def check_length(model: Model) -> None:
    """Check that a language model reads as many tokens as it says."""
    import torch

    from zoo.errors import one_line
    from zoo.family.text.family import TextFamily
    from zoo.family.vision.language import VisionLanguageFamily

    if not isinstance(model.family, TextFamily) or isinstance(model.family, VisionLanguageFamily):
        raise Skipped("it is not a model of texts alone")
    length = model.family.context_length(model)
    if length > LONGEST:
        raise Skipped(f"it takes {length:,} tokens, which would take long")
    try:
        with torch.no_grad():
            model.family.forward(model, model.family.example(model, batch=1, size=length))
    except Exception as error:
        raise AssertionError(
            f"{name_of(model)}: it says that it takes {length} tokens, and fails on them ({one_line(error)}); see "
            "`context_length`, or max_position_embeddings in its config"
        ) from None


def check_order(model: Model) -> None:
    """Check that tokens of a causal model do not see later ones."""
    import torch

    batch = _tokens(model)
    ids_BT, other_BT = batch["input_ids"], batch["input_ids"].clone()
    other_BT[:, -1] = _tokens(model, seed=1)["input_ids"][:, -1]
    with torch.no_grad():
        first, second = (model.family.forward(model, {**batch, "input_ids": ids}) for ids in (ids_BT, other_BT))
    require(
        _alike(model, first[:, :-1], second[:, :-1]),
        f"{name_of(model)}: what it says of a token depends on the one after it; a causal model masks what comes later",
    )


def check_cache(model: Model) -> None:
    """Check that reading token after token, with a cache, gives what reading all at once gives."""
    import torch

    batch = _tokens(model)
    ids_BT = batch["input_ids"]
    beside = {name: tensor for name, tensor in batch.items() if name != "input_ids"}  # goes with the first pass
    read, logits, cache = ids_BT.shape[1] - LATER, [], None
    with torch.no_grad():
        whole_BTV = model.family.forward(model, batch)
        for piece_BT in (ids_BT[:, :read], *(ids_BT[:, at : at + 1] for at in range(read, ids_BT.shape[1]))):
            out = model.module(input_ids=piece_BT, cache=cache, use_cache=True, logits_to_keep=1, **beside)
            cache, beside = getattr(out, "cache", None), {}
            require(cache is not None, f"{name_of(model)}: with `use_cache` its module returns no `cache`")
            logits.append(out.logits[:, -1])
    require(
        _alike(model, whole_BTV[:, read - 1 :], torch.stack(logits, dim=1)),
        f"{name_of(model)}: read token after token, with a `cache`, it gives other logits than read at once; "
        "docs/hooks.md says what a module does with a cache",
    )


def _tokens(model: Model, *, seed: int = 0) -> Batch:
    """A batch of a model that writes token after token; of one that sees, with tokens after those of the image."""
    from zoo.family.task import task_of
    from zoo.family.vision.language import VisionLanguageFamily

    if not task_of(model).causal:
        raise Skipped(f"models of the task {model.spec.task} do not write token after token")
    seen = model.family.tile_shape(model)[1] if isinstance(model.family, VisionLanguageFamily) else 0
    batch = model.family.example(model, batch=2, size=seen + TOKENS, seed=seed)
    if "input_ids" not in batch or batch["input_ids"].shape[1] <= seen + LATER:
        raise Skipped("it reads no more than a few tokens")
    return batch


def _alike(model: Model, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether outputs differ by no more than sums in another order."""
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= CLOSE.get(model.dtype, 5e-2) * one.abs().max().clamp_min(1e-6))
