"""What is asked of a model as it is loaded: that it is read whole, computes what its library computes, and comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from findings import COUNTED, DoesNotApply, Finding, attempt, must
from torch import nn
from zoo_compress.report.inspection import describe

import zoo
from zoo.anatomy.coverage import said
from zoo.anatomy.modules import features
from zoo.anatomy.parts import Anatomy
from zoo.family.embedding import is_embedding
from zoo.family.task import task_of
from zoo.family.text.generate import next_tokens, reads_apart
from zoo.model.model import Model
from zoo.testing.computed import difference, outputs
from zoo.testing.exact import require, require_equal_sizes
from zoo.testing.fresh import FreshProcess

# Of the largest logit: the same sums, in another order.
CLOSE = 1e-4
CLOSE_IN = {"float32": CLOSE, "bfloat16": 0.02}
TOKENS, PROMPT = 8, 12  # generated after a prompt longer than the small models' windows


def check_model(
    model: Model, reference: str | Path, library: Any, folder: Path, fresh: FreshProcess
) -> Iterator[Finding]:
    """The checks of a loaded model; what does not depend on the precision is asked in float32 alone."""
    if model.dtype == "float32":
        yield must("inspect", "", partial(inspected, model, reference), why="zoo.load takes it, zoo inspect refuses")
    yield must("reload", model.dtype, partial(reloaded, model, folder, fresh), why="loaded, but not saved and reloaded")
    yield attempt("rows", model.dtype, partial(own_rows, model))
    if model.dtype == "float32":
        yield must("logits", "", partial(same_logits, model, library), why="loaded, but does not run")
        yield must("length", "", partial(whole_length, model), why="it is to read as much")
        yield attempt("cached", "", partial(cached_as_uncached, model))
        yield attempt("all", "", partial(nothing_left_out, model))
        yield reached(model)


def inspected(model: Model, reference: str | Path) -> None:
    """`zoo inspect` describes it, and the skeleton has its sizes."""
    describe(str(reference))
    skeleton = zoo.load(reference, device="meta")
    require_equal_sizes(skeleton, model, "the skeleton, without the weights,")


def reloaded(model: Model, folder: Path, fresh: FreshProcess) -> None:
    """Saved, and loaded by another process, it computes the same bits."""
    artifact = model.save(folder)
    here = outputs(model)
    wrong = difference("", here, fresh.outputs(artifact))
    require(not wrong, wrong.strip(" ,:"))


@torch.no_grad()
def same_logits(model: Model, library: Any) -> None:
    """It computes what its library computes, again and again."""
    if library is None:
        raise DoesNotApply
    batch = model.family.example(model)
    mine = model.family.forward(model, batch)
    # FSMT's, asked for a cache, lets tokens see those after them
    cacheless = (
        {"use_cache": False} if "use_cache" in signature(getattr(library, "forward", library)).parameters else {}
    )
    theirs = library(**batch, **cacheless)
    if is_embedding(model):  # of a transformer alone, the mean of its tokens
        _near(mine, theirs.last_hidden_state.mean(1), "the model's vectors and the means of its library's tokens")
    else:
        _near(mine, theirs.logits, "the model's logits and its library's")
    require(torch.equal(mine, model.family.forward(model, batch)), "a second forward pass gives others")


@torch.no_grad()
def own_rows(model: Model) -> None:
    """What losses compare are the logits of the model, with the head as it is and forty times as large."""
    if model.spec.modality != "text" or is_embedding(model):
        raise DoesNotApply
    for scale in (1.0, 40.0):
        copy = model.copy()
        head = copy.module.get_output_embeddings()
        if head is not None and getattr(head, "weight", None) is not None:
            head.weight.mul_(scale)
        batch = copy.family.example(copy)
        written = batch.get("decoder_input_ids", batch["input_ids"])
        rows = copy.family.rows(copy, {**batch, "labels": written}, ("label",))["label"]
        own = copy.family.forward(copy, batch)
        _near(
            rows.head(rows.hidden),
            own.flatten(0, 1),
            f"rows and logits, with the head times {scale:.0f},",
            CLOSE_IN[model.dtype],
        )


def _near(mine: torch.Tensor, theirs: torch.Tensor, what: str, close: float = CLOSE) -> None:
    require(mine.shape == theirs.shape, f"{what} are of shapes {tuple(mine.shape)} and {tuple(theirs.shape)}")
    furthest = float((mine.float() - theirs.float()).abs().max()) / max(float(theirs.abs().max()), 1e-9)
    require(furthest < close, f"{what} differ by {furthest:.1%} of the largest")


@torch.no_grad()
def whole_length(model: Model) -> None:
    """It reads as many tokens as it is said to take."""
    if model.spec.modality != "text":
        raise DoesNotApply
    length = model.family.context_length(model)
    model.family.forward(model, model.family.example(model, batch=1, size=length))


@torch.no_grad()
def cached_as_uncached(model: Model) -> None:
    """Greedy text with a cache is that of whole passes; where two tokens are as likely, either."""
    if model.spec.modality != "text" or not task_of(model).writes:
        raise DoesNotApply
    prompt = model.family.example(model, batch=1, size=PROMPT, seed=3)["input_ids"]
    tokens = list(next_tokens(model, prompt[0].tolist(), TOKENS))
    written = _start(model, prompt)
    for place, token in enumerate(tokens):
        # without a mask some encoders take a token that happens to be the padding for padding
        apart = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "decoder_input_ids": written}
        batch = apart if reads_apart(model) else {"input_ids": written}
        logits_V = model.family.forward(model, batch)[0, -1].float()
        behind = float(logits_V.max() - logits_V[token]) / max(float(logits_V.abs().max()), 1e-9)
        require(
            behind < CLOSE,
            f"with a cache, token {place + 1} is another than without (its logit is {behind:.1%} lower)",
        )
        written = torch.cat([written, torch.tensor([[token]])], dim=1)


def _start(model: Model, prompt: torch.Tensor) -> torch.Tensor:
    from zoo.family.text.tokens import start_token

    return torch.tensor([[start_token(model)]]) if reads_apart(model) else prompt


def nothing_left_out(model: Model) -> None:
    """Every linear layer, convolution or table of experts is in the target "all", or it is said how many are not."""
    layers, outside = list(_layers(model)), outside_all(model)
    require(
        not outside or re.search(rf"\b{len(outside)} of {len(layers)} ", _said(model)) is not None,
        f"{len(outside)} of {len(layers)} layers are outside the target 'all' without a word, "
        f"such as {outside[0] if outside else ''}",
    )


def reached(model: Model) -> Finding:
    """How many of its layers the target "all" takes in."""
    count = len(list(_layers(model)))
    return Finding("layers", "", COUNTED, f"{count - len(outside_all(model))} of {count}")


def outside_all(model: Model) -> list[str]:
    inside = set(_named(model.anatomy))
    return [path for path in _layers(model) if path not in inside]


def _said(model: Model) -> str:
    """What a stage that is to reach all layers records of those it leaves, for plan, report and card."""
    from zoo import registry

    compressor = registry.compressor("quantize.int8")
    return said(compressor.outline(model, compressor.Options()))


def _named(anatomy: Anatomy) -> Iterator[str]:
    """Everything that an anatomy names."""
    yield from (path for paths in anatomy.layers.values() for path in paths)
    yield from filter(None, (anatomy.embedding, anatomy.head))
    for stack in anatomy.stacks.values():
        yield from (*stack.readers, *stack.writers, *stack.embeddings, *filter(None, [stack.head]))
        for block in stack.blocks:
            layers = [layer for layer in (block.attention, block.cross, block.ffn, *block.linears) if layer]
            yield from (path for layer in layers for path in layer.projections)
            yield from (*block.routers, *filter(None, [block.ffn and block.ffn.router]))


def _layers(model: Model) -> Iterator[str]:
    for path, module in model.module.named_modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(weight, torch.Tensor)
            and weight.dim() >= 2
            and _is_layer(module, text=model.spec.modality == "text")
        ):
            yield path
    for path, module in model.module.named_modules():
        experts = "expert" in f"{path}{type(module).__name__}".lower()
        for name, parameter in module.named_parameters(recurse=False):
            if experts and parameter.dim() == 3 and not hasattr(module, "kernel_size") and "bias" not in name:
                yield f"{path}.{name}"


def _is_layer(module: nn.Module, *, text: bool) -> bool:
    """Linear layers; convolutions where they are what the model is made of."""
    return features(module) is not None or (not text and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d))
