"""What a family of language models, or a stage for them, can get wrong, one thing at a time: the package `zoo_unread.broken` of a plugin made for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo_unread.family import Config, Output, PlainLM, PlainLMFamily

from zoo.compressor import Compressor
from zoo.loss import LossOptions, RowLoss
from zoo.model.context import Context
from zoo.model.lineage import Record
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.testing.alphabet import alphabet

# --- families ---------------------------------------------------------------------------------------------------------


class Mute(PlainLMFamily):
    """Its saved models have no tokenizer."""

    def save_processor(self, processor: Any, path: Path) -> None:
        pass


class Forgetful(PlainLM):
    """It forgets what it read before."""

    def forward(
        self, input_ids: torch.Tensor, cache: Any = None, use_cache: bool = False, logits_to_keep: int = 0
    ) -> Output:
        return super().forward(input_ids, None, use_cache, logits_to_keep)


class Cacheless(PlainLMFamily):
    """Its models ignore the cache."""

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return Forgetful(Config(**config)).eval()


class Foreseeing(PlainLM):
    """It tells of every token what the text ends with."""

    def forward(
        self, input_ids: torch.Tensor, cache: Any = None, use_cache: bool = False, logits_to_keep: int = 0
    ) -> Output:
        out = super().forward(input_ids, cache, use_cache, logits_to_keep)
        return Output(out.logits + input_ids[:, -1, None, None], out.cache)


class Peeking(PlainLMFamily):
    """Its models see later tokens."""

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return Foreseeing(Config(**config)).eval()


class Maskless(PlainLM):
    """It takes a mask and looks at padding all the same."""

    def forward(
        self,
        input_ids: torch.Tensor,
        cache: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        attention_mask: torch.Tensor | None = None,
    ) -> Output:
        return super().forward(input_ids, cache, use_cache, logits_to_keep)


class Unmasked(PlainLMFamily):
    """Its models read the padding beside a longer prompt."""

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return Maskless(Config(**config)).eval()


class Overlong(PlainLMFamily):
    """It says that its models take two tokens more than they do."""

    def context_length(self, model: Model) -> int:
        return super().context_length(model) + 2


class Mingling(PlainLMFamily):
    """What it says of a text depends on those beside it."""

    def forward(self, model: Model, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = super().forward(model, batch)
        return logits - logits.mean(0)


class Aimless(PlainLMFamily):
    """It has a task that is no class."""

    tasks = ("causal-lm", "summarising")


class Hashed(PlainLMFamily):
    """Its random weights follow the order of a set."""

    def initialise(self, module: nn.Module) -> None:
        super().initialise(module)
        nn.init.constant_(module.norm.bias, float(next(iter({f"word {i}" for i in range(4096)}))[5:]))


# --- compressors ------------------------------------------------------------------------------------------------------


class Dropping(Compressor):
    """It drops the tokenizer."""

    name = "dropping"

    class Options(CompressorOptions):
        pass

    def outline(self, model: Model, options: Any) -> Record:
        return {}

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.processor = None
        return {}

    def rebuild(self, model: Model, record: Record) -> None:
        pass


class Respelling(Dropping):
    """It leaves another tokenizer and does not say so."""

    name = "respelling"

    def apply(self, model: Model, options: Any, context: Context) -> Record:
        model.processor = alphabet(100)
        return {}


# --- losses -----------------------------------------------------------------------------------------------------------


class Gap(RowLoss):
    """The squared gap of logits: right in everything, and tried on a model that came without a tokenizer."""

    def __call__(self, student_NV: torch.Tensor, teacher_NV: Any, rows: Any, options: LossOptions) -> torch.Tensor:
        return (student_NV - teacher_NV).square().mean(-1)
