"""What a model computes, as hashes that are compared across processes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from zoo.testing.materials import LINES

if TYPE_CHECKING:
    from zoo.model.model import Model


Outputs = dict[str, Any]
TOKENS = 8  # generated with a cache


def outputs(model: Model) -> Outputs:
    """What a model is and computes: sizes, traits, and hashes of the raw bytes of its tensors and outputs.

    Batches of several sizes, since many rows, few, and one run in different kernels, and one in particular is sensitive
    to where a weight lies in memory. Causal models also generate, with a cache.
    """
    import torch

    from zoo.family.task import task_of
    from zoo.family.text.generate import next_tokens
    from zoo.family.text.task import TextTask

    computed: Outputs = {
        "parameters": model.params,
        "bytes": model.bytes,
        "traits": {path: [[t.kind, t.detail, t.stage] for t in traits] for path, traits in model.state().items()},
        "tensors": hash_of_tensors(model),
    }
    with torch.no_grad():
        for name, (batch, size) in {
            "output": (2, 16),
            "output for four tokens": (1, 4),
            "output for one token": (1, 1),
        }.items():
            computed[name] = _hash(model.family.forward(model, model.family.example(model, batch=batch, size=size)))
    task = task_of(model)
    if isinstance(task, TextTask) and task.causal and task.text_only:
        prompt = model.family.example(model, batch=1, size=4)["input_ids"][0].tolist()
        computed["generated tokens"] = list(next_tokens(model, prompt, TOKENS))
        computed["sampled tokens"] = list(next_tokens(model, prompt, TOKENS, temperature=1.0))
    if (tokens := tokens_of(model)) is not None:
        computed["tokens of a text"] = tokens
    return computed


def tokens_of(model: Model) -> list[Any] | None:
    """The tokens that a language model's tokenizer makes of a text; None where it has none."""
    from zoo.family.text.family import TextFamily

    if model.processor is None or not isinstance(model.family, TextFamily):
        return None
    tokens: list[Any] = model.family.tokenizer(model)(LINES[0])["input_ids"]
    return tokens


def difference(label: str, here: Outputs, there: Outputs) -> str:
    """Say in what a reloaded model differs from the saved one; "" where in nothing."""
    if "error" in there:
        return f"{label} does not load in a fresh process: {there['error']}"
    if there["stored bytes"] != here["bytes"]:
        return f"{label}: its file holds {there['stored bytes']:,} bytes of weights, Model.bytes says {here['bytes']:,}"
    wrong = [key for key, value in json.loads(json.dumps(here)).items() if there.get(key) != value]
    return f"{label}, reloaded in a fresh process, differs in {', '.join(wrong)}" if wrong else ""


def _hash(tensor: torch.Tensor) -> str:
    import torch

    if not tensor.numel():
        return hashlib.sha256().hexdigest()
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def hash_of_tensors(model: Model) -> str:
    parts = [(name, str(t.dtype), list(t.shape), _hash(t)) for name, t in sorted(model.tensors().items())]
    return hashlib.sha256(json.dumps([parts, model.aliases()], sort_keys=True).encode()).hexdigest()


def left_behind(module: torch.nn.Module) -> str:
    """Name what code that only looked at a module forgot in it: a hook, or the gradient of a parameter; "" for nothing."""
    for path, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return f"a hook on {path or 'the module'}"
    return next((f"the gradient of {name}" for name, p in module.named_parameters() if p.grad is not None), "")
