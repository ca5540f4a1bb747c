"""Evaluation of language models against their original: how far their predictions of held-out text are apart.

Legend: T tokens of a window, R of them that are predicted, V tokens of the vocabulary, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from zoo.data.dataset import Dataset
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.intervals import bootstrap
from zoo.family.text.task import text_family, text_task
from zoo.family.text.tokens import differing_vocabulary
from zoo.loading.original import original_of
from zoo.model.model import Model
from zoo_slm.evaluators import (
    CHUNK_BYTES,
    Metric,
    PerplexityOptions,
    Window,
    batch_of,
    hidden_tokens,
    mask_token,
    require_finite_window,
    require_predicting,
    windows_of,
)

if TYPE_CHECKING:
    import numpy as np

Batch = dict[str, torch.Tensor]
NAME = "divergence"


class DivergenceOptions(PerplexityOptions):
    """Options of `[evaluate.divergence]`."""


class Divergence:
    """Kullback-Leibler divergence of a model's next-token predictions from its original's, KL(original || model) per token.

    Its mean, its 99 % quantile over tokens, and the share of tokens for which both have the same likeliest one. The
    original is the model that the first stage began with, which the model's manifest names; without stages it is the model
    itself. Tokens are those whose prediction `perplexity` measures, in the same windows: every token of the text once, the
    prompt and padding never; 15% masked tokens of masked models, the second half of each window of seq2seq models. The
    intervals are a 95% bootstrap over windows.
    """

    Options = DivergenceOptions

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, from the structure of the model and its original, and their tokenizers.

        Raises:
            RequestError: it is no text model, lacks a token that is needed, or has another vocabulary than its original.
            DataError: a record has no text, none has any, or one has an image or a prompt, which would not be looked at.
        """
        require_predicting(model, data, evaluator=NAME)
        skeleton = model if model.device.type == "meta" else model.skeleton()
        _require_one_vocabulary(model, original_of(skeleton, evaluator=NAME))

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; `options` are those of `DivergenceOptions`.

        Raises:
            DataError: no data, or records too short to predict anything.
            RequestError: the original cannot be had, or has another vocabulary.
        """
        if data is None:
            raise DataError(
                f'{NAME} needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.'
            )
        require_predicting(model, data, evaluator=NAME)
        original = original_of(model, evaluator=NAME)
        _require_one_vocabulary(model, original)
        windows = windows_of(model, data, DivergenceOptions(**options), evaluator=NAME)
        kl, agreement = [], []  # of each window, of its tokens
        with torch.inference_mode():
            for window, batch, rows_R in _asked(model, windows):
                kl_R, same_R = _compared(model, original, batch, rows_R)
                require_finite_window(model, float(kl_R.sum()), window)
                kl.append(kl_R.numpy())
                agreement.append(same_R.numpy())
        if not kl:
            raise DataError("The test data is too short: not one token was masked.")
        return {
            "kl": {**_mean(kl), "unit": "nat", "better": "lower"},
            "kl_q99": {**_quantile(kl, 0.99), "unit": "nat", "better": "lower"},
            "top1_agreement": {**_mean([100.0 * same for same in agreement]), "unit": "%", "better": "higher"},
        }


def _require_one_vocabulary(model: Model, original: Model) -> None:
    sizes = (text_family(model).vocabulary(model), text_family(original).vocabulary(original))
    begin = f"{NAME} compares distributions over one vocabulary"
    remedy = "Measure perplexity, whose bits per byte are comparable between tokenizers."
    if problem := differing_vocabulary(model, original, sizes, begin=begin, role="its original", remedy=remedy):
        raise RequestError(problem)


def _asked(model: Model, windows: list[Window]) -> Iterator[tuple[Window, Batch, torch.Tensor]]:
    """Each window, as a model takes it, and the positions whose outputs predict a token."""
    if not text_task(model).masks:
        for window in windows:
            yield window, batch_of(model, window), torch.arange(window.given - 1, len(window.ids) - 1)
        return
    mask, generator = mask_token(model, evaluator=NAME), torch.Generator().manual_seed(0)
    for window in windows:
        hidden_T = hidden_tokens(window, generator)
        if hidden_T.any():
            batch = batch_of(model, window)
            ids_T = batch["input_ids"].masked_fill(hidden_T.to(model.device), mask)
            yield window, {**batch, "input_ids": ids_T}, hidden_T.nonzero()[:, 0]


def _compared(model: Model, original: Model, batch: Batch, rows_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(original || model) of the predictions at some positions, and whether both find the same token likeliest.

    Of a token that is written in several slots at once the divergence is their sum, and all have to agree.
    """
    both = (model, original)
    sizes = [text_family(one).vocabulary(one) for one in both]
    step = max(1, CHUNK_BYTES // (4 * max(sizes)))
    kl, same = [], []
    for mine, theirs in zip(*(_logits(one, batch, rows_R.to(one.device), step=step) for one in both), strict=True):
        common = min(mine.shape[-1], theirs.shape[-1])  # publishers pad tables; there are no tokens for the rest
        mine, theirs = mine[..., :common].float(), theirs[..., :common].float()
        agree = mine.argmax(-1) == theirs.argmax(-1)
        mine, theirs = mine.log_softmax(-1), theirs.log_softmax(-1)
        apart = (theirs.exp() * (theirs - mine)).reshape(len(mine), -1)
        kl.append(apart.sum(-1).clamp_min(0).cpu())  # rounding may leave less
        same.append(agree.reshape(len(mine), -1).all(-1).cpu())
    return torch.cat(kl).double(), torch.cat(same)


def _logits(model: Model, batch: Batch, rows_R: torch.Tensor, *, step: int) -> Iterator[torch.Tensor]:
    """The logits at some positions, `step` of them at a time, so that those of a window are never held whole."""
    family, module = text_family(model), model.module
    if (split := family.body_and_head(module)) is not None:
        body, head = split
        hidden_RD = body(**batch, use_cache=False).last_hidden_state[0, rows_R]
        yield from (head(part) for part in torch.split(hidden_RD, step))
        return
    length = batch.get("decoder_input_ids", batch["input_ids"]).shape[1]
    for part_R in torch.split(rows_R, step):
        with _reading(module, part_R, of=length):
            logits = family.forward(model, batch)[0]
        yield logits if len(logits) == len(part_R) else logits[part_R]


@contextmanager
def _reading(module: Any, rows_R: torch.Tensor, *, of: int) -> Iterator[None]:
    """The head is given some of the positions alone, where the module has one that it calls with all of them."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None

    def narrow(_head: Any, inputs: tuple[Any, ...]) -> Any:
        if inputs and inputs[0].dim() == 3 and inputs[0].shape[1] == of:
            return (inputs[0][:, rows_R], *inputs[1:])
        return None

    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _mean(windows: list[np.ndarray]) -> Metric:
    """The mean over all tokens."""
    import torch

    sum_W = torch.tensor([float(window.sum()) for window in windows], dtype=torch.float64)
    count_W = torch.tensor([len(window) for window in windows])
    return _of_windows(bootstrap(lambda places: float(sum_W[places].sum() / count_W[places].sum()), len(windows)))


def _quantile(windows: list[np.ndarray], share: float) -> Metric:
    """The quantile over all tokens; fewer draws, as each sorts them."""
    import numpy as np

    def quantile(places: torch.Tensor) -> float:
        return float(np.quantile(np.concatenate([windows[place] for place in places]), share))

    return _of_windows(bootstrap(quantile, len(windows), draws=200))


def _of_windows(metric: Metric) -> Metric:
    return {**metric, "of": "windows"}
