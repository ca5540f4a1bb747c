"""Questions to a class of transformers that its config does not answer: asked of a tiny twin, once.

Where there is no twin, because nobody knows how to make the architecture small, the module itself is asked.
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

Question = Callable[[Any], bool]
FACTOR = re.compile("scal|mult|logit")

_answers: WeakKeyDictionary[nn.Module, dict[Question, bool]] = WeakKeyDictionary()


def ask(module: nn.Module, question: Question, *, of_twin: Question | None = None) -> bool:
    """Ask `question` of a twin of the module's class and config, else of the module; one without values is believed.

    Args:
        of_twin: asked of the twin instead; it may change its weights.
    """
    answers = _answers.setdefault(module, {})
    if question not in answers:
        # a thread of its own knows nothing of inference mode, fake tensors or a device that is the default here
        with ThreadPoolExecutor(1) as pool:
            answers[question] = pool.submit(_answer, module, question, of_twin or question).result()
    return answers[question]


def _answer(module: Any, question: Question, of_twin: Question) -> bool:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    cls: Any = type(module)
    try:
        answer = _of_twin(of_twin, cls, json.dumps(module.config.to_dict(), sort_keys=True, default=str), dtype)
    except TypeError:  # a config that JSON has no words for
        answer = None
    if answer is not None:
        return answer
    weight = next(module.parameters())
    if type(weight.data).__name__ == "FakeTensor" or weight.device.type == "meta":
        return True
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        return question(module)
    finally:
        for part in training:
            part.training = True


@lru_cache(maxsize=512)
def _of_twin(question: Question, cls: Any, config: str, dtype: torch.dtype) -> bool | None:
    """Ask a twin with all factors moved off 1; None where none can be made or run."""
    values = json.loads(config)
    try:
        small = tiny(values, values, name=cls.__name__)
        for key, value in small.items():
            if FACTOR.search(key) and type(value) in (int, float) and value == 1:
                small[key] = type(value)(2)
        with global_state, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            twin = cls(parsed(small)).eval().to(dtype)
        with torch.no_grad():
            twin(**{name: torch.arange(1, 9)[None] for name in _inputs(twin)})
    except (*UNFIT, RequestError, NotImplementedError):
        return None
    return question(twin)


def _inputs(module: Any) -> tuple[str, ...]:
    return ("input_ids", "decoder_input_ids") if module.config.is_encoder_decoder else ("input_ids",)
