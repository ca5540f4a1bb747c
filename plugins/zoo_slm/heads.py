"""The head of a causal model apart from its body, so that losses and perplexity need logits of chosen rows alone.

Between the two a class may scale, cap or add something that no config key tells. So what a split says is compared with
the model's own logits, and a model that does not agree is not split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zoo.errors import RequestError
from zoo.model.building import global_state
from zoo_slm.configs import UNFIT, parsed
from zoo_slm.scale import tiny

Split = tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]
FACTOR = re.compile("scal|mult|logit")
LARGE = 40.0  # what the head's weights are multiplied with: a cap on logits does not show in small ones

_agrees: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def body_and_head(module: nn.Module) -> Split | None:
    """Split a causal model of transformers into body and head, or None where the two are not all of it."""
    split = _split(module)
    if split is None:
        return None
    if module not in _agrees:
        # a thread of its own knows nothing of inference mode, fake tensors or a device that is the default here
        with ThreadPoolExecutor(1) as pool:
            _agrees[module] = pool.submit(_checked, module, split).result()
    return split if _agrees[module] else None


def _split(module: Any) -> Split | None:
    """What the names in class and config say."""
    head, body = module.get_output_embeddings(), module.base_model
    if body is module:  # Llama 4 names another prefix than its own
        body = getattr(module, "model", None)
    if head is None or body is None or getattr(module, "lm_head", None) is not head:
        return None
    if getattr(module.config, "is_encoder_decoder", False):  # T5 scales between the two, BART adds a bias after
        return None
    read: Any = head
    config = module.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    # Cohere, Falcon-H1; Granite
    factors = [
        float(getattr(config, name, None) or 1) for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")
    ]
    scale = factors[0] * factors[1] / factors[2]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        weight = getattr(read, "weight", None)
        if weight is not None and weight.is_floating_point():  # Mamba leaves its body in float32
            hidden = hidden.to(weight.dtype)
        raw: torch.Tensor = read(hidden) * scale if scale != 1 else read(hidden)
        return torch.tanh(raw / cap) * cap if cap else raw

    return body, logits


def _checked(module: Any, split: Split) -> bool:
    """Whether body and head give the module's own logits, asked of a tiny twin of its class and config.

    Where there is no twin, it is asked of the module itself; one without values is believed.
    """
    cls: Any = type(module)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        agrees = _twin_agrees(cls, json.dumps(module.config.to_dict(), sort_keys=True, default=str), dtype)
    except TypeError:  # a config that JSON has no words for
        agrees = None
    if agrees is not None:
        return agrees
    weight: Any = module.get_output_embeddings().weight
    if type(weight).__name__ == "FakeTensor" or weight.device.type == "meta":
        return True
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        return _same(module, split, device=weight.device)
    finally:
        for part in training:
            part.training = True


@lru_cache(maxsize=256)
def _twin_agrees(cls: Any, config: str, dtype: torch.dtype) -> bool | None:
    """Ask a twin, its factors moved off 1, with its head and with a larger one; None where none can be made or run."""
    values = json.loads(config)
    try:
        small = tiny(values, values, name=cls.__name__)
        for key, value in small.items():
            if FACTOR.search(key) and type(value) in (int, float) and value == 1:
                small[key] = type(value)(2)
        with global_state, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            twin = cls(parsed(small)).eval().to(dtype)
        twin(input_ids=torch.arange(1, 9)[None])
    except (*UNFIT, RequestError, NotImplementedError):
        return None
    split = _split(twin)
    if split is None or not _same(twin, split):
        return False
    with torch.no_grad():
        twin.get_output_embeddings().weight.mul_(LARGE)
    return _same(twin, split)


def _same(module: Any, split: Split, *, device: Any = "cpu") -> bool:
    """Whether both give the same logits of eight tokens; what does not run is not the same."""
    body, head = split
    ids = torch.arange(1, 9, device=device)[None]
    try:
        with torch.no_grad():
            own = module(input_ids=ids).logits
            ours = head(body(input_ids=ids, use_cache=False).last_hidden_state)
    except UNFIT:
        return False
    near = 1e-4 if own.dtype == torch.float32 else 2e-2
    own, ours = own.float(), ours.float()
    return own.shape == ours.shape and torch.allclose(own, ours, rtol=near, atol=near * float(own.abs().max()))
