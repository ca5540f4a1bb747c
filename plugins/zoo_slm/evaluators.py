"""Evaluation of language models: held-out bits per byte with an interval.

A metric is {"value", and where it has an interval "low" and "high", "unit", "better"}.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field

from zoo.data.dataset import Dataset, naming_record
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.intervals import bootstrap
from zoo.family.embedding import is_embedding
from zoo.family.text.family import TextFamily
from zoo.family.text.task import text_family, text_task
from zoo.family.text.tokens import answer
from zoo.model.health import require_finite_outputs
from zoo.model.model import Model
from zoo.options import CompressorOptions

Metric = dict[str, Any]
CHUNK_BYTES = 64 * 2**20


class PerplexityOptions(CompressorOptions):
    """Options of `[evaluate.perplexity]`."""

    max_tokens: int = Field(
        0, ge=0, examples=[2000], description="evenly spaced windows up to that many tokens; 0: all"
    )
    length: int = Field(512, ge=2, description="tokens in a window, at most the model's context")


class Perplexity:
    """Held-out bits per UTF-8 byte, comparable between tokenizers and with a file compressor, and token perplexity.

    Every record is cut into windows of the model's context, each begun as the tokenizer begins a text (`<bos>`), or with
    an end-of-text token where it sets nothing there. So every token is predicted once, from at most one window of what
    came before; a record's prompt is read, not predicted, and its bytes do not count. A character that several tokens
    share is parted among them, so that the bytes of all windows are those of the text, whatever their length. The
    intervals are a 95% bootstrap over windows; of one window there is none. Masked models report the loss on 15% masked
    tokens instead; seq2seq models read the first half of each window and are asked for the second.
    """

    Options = PerplexityOptions
    version = 2  # 1: windows without the tokenizer's <bos>

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, from the model's structure and its tokenizer.

        Raises:
            RequestError: it is no text model, or its tokenizer lacks a token that is needed.
            DataError: a record has no text, none has any, or one has an image, which would not be looked at, or a prompt that
                the model has no place for.
        """
        require_predicting(model, data, evaluator="perplexity")

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; `options` are those of `PerplexityOptions`.

        Raises:
            DataError: no data, or records too short to predict anything.
        """
        if data is None:
            raise DataError(
                f'perplexity needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.'
            )
        self.check(model, data)
        windows = windows_of(model, data, PerplexityOptions(**options), evaluator="perplexity")
        if text_task(model).masks:
            return _masked(model, windows)
        nats, sizes, counts = [], [], []
        with torch.inference_mode():
            for window in windows:
                nats.append(_nats(model, window))
                require_finite_window(model, nats[-1], window)
                sizes.append(window.size)
                counts.append(len(window.ids) - window.given)
        nats_W = torch.tensor(nats, dtype=torch.float64)
        bits_per_byte = _ratio(nats_W / math.log(2), torch.tensor(sizes, dtype=torch.float64))
        nats_per_token = _ratio(nats_W, torch.tensor(counts, dtype=torch.float64))
        ends: Metric = {
            key: math.exp(min(nats_per_token[key], 700.0)) for key in ("value", "low", "high") if key in nats_per_token
        }
        return {
            "bits_per_byte": {**bits_per_byte, "unit": "bit/B", "better": "lower"},
            "perplexity": {**nats_per_token, **ends, "better": "lower"},
        }


class Window(NamedTuple):
    """Tokens to predict."""

    ids: list[int]
    given: int  # how many of them, from the first, are read and not predicted: what leads a text, and its prompt
    size: float  # bytes of the text that the others cover
    read: list[int]  # what the encoder of a seq2seq model reads before
    where: str  # the record it is cut from


def require_predicting(model: Model, data: Dataset, *, evaluator: str) -> None:
    """Refuse models that predict no tokens, and records that hold none to predict; as `Perplexity.check`."""
    if not isinstance(model.family, TextFamily):
        raise RequestError(f"{evaluator} is for text models; {model.spec.name} is {model.spec.modality}.")
    task = text_task(model)
    if is_embedding(model):
        raise RequestError(
            f"{evaluator} is of models that predict tokens; {model.spec.name} makes vectors: measure similarity."
        )
    task.require_texts(model, data)
    if seen := next((sample for sample in data if "image" in sample.fields), None):
        raise DataError(
            f"{seen.where}: the record has an image, which {evaluator} does not look at; name no task, and the model "
            "is measured by what suits it, or give texts."
        )
    if not any(sample.text for sample in data):
        raise DataError(f"{data.name!r} holds no text to predict.")
    if task.masks:
        mask_token(model, evaluator=evaluator)
    _lead(model, evaluator=evaluator)


def windows_of(model: Model, data: Dataset, options: PerplexityOptions, *, evaluator: str) -> list[Window]:
    """The windows to measure: of all records, or spread evenly over them up to `max_tokens`."""
    family = model.family
    assert isinstance(family, TextFamily)
    length = min(options.length, family.context_length(model))
    windows = _windows(family, model, data, length=length, evaluator=evaluator)
    if options.max_tokens:
        stride = max(1, math.ceil(sum(len(window.ids) for window in windows) / options.max_tokens))
        windows = windows[stride // 2 :: stride] or windows[:1]
    return windows


def _windows(family: TextFamily, model: Model, data: Dataset, *, length: int, evaluator: str) -> list[Window]:
    """Cut every record into windows, each begun as the tokenizer begins a text, or after an end-of-text token."""
    task, prefix, lead = text_task(model), family.special_tokens(model)[0], _lead(model, evaluator=evaluator)
    step = length - len(lead)
    if step < 1:
        raise RequestError(
            f"{evaluator} needs windows of more than the {len(lead)} tokens that lead them; raise `length`."
        )
    windows = []
    for sample in data:
        with naming_record(sample):
            ids, spans = answer(family, model, sample.prompt, sample.text)
            prompt = family.tokens(model, sample.prompt)[0] if sample.prompt else []
        ids, sizes = [*prompt, *ids], [0.0] * len(prompt) + _sizes(sample.text, spans)
        written = len(lead) if ids[: len(lead)] == lead else 0  # in the text itself, as chat templates do
        ids, sizes, asked_from = ids[written:], sizes[written:], max(0, len(prompt) - written)
        for start in range(0, len(ids), step):
            piece, piece_sizes = ids[start : start + step], sizes[start : start + step]
            encoded, predicted = task.parted(piece)
            given = max(0, asked_from - start)
            if given < len(predicted):
                read = [*prefix, *encoded] if encoded else []
                size = math.fsum(piece_sizes[len(encoded) :])
                windows.append(Window([*lead, *predicted], len(lead) + given, size, read, sample.where))
    if not windows:
        raise DataError(f"{data.name!r} holds no text to predict.")
    return windows


def _sizes(text: str, spans: Sequence[tuple[int, int]]) -> list[float]:
    """The bytes of a text that each token stands for, given the characters it covers.

    Characters between two tokens belong to the second, those after the last to the last, and those that several tokens
    share (bytes of one character) are parted among them.
    """
    covered, done = [], 0
    for number, (start, end) in enumerate(spans, 1):
        covered.append(range(min(start, done), len(text) if number == len(spans) else end))
        done = max(done, end)
    sharing = Counter(itertools.chain.from_iterable(covered))
    shares = [len(character.encode()) / max(1, sharing[i]) for i, character in enumerate(text)]
    return [math.fsum(shares[i] for i in places) for places in covered]


def _lead(model: Model, *, evaluator: str) -> list[Any]:
    """The tokens that lead every window, or refuse a tokenizer that has none."""
    lead = text_task(model).lead(model)
    if not lead:
        raise RequestError(
            f"{evaluator} starts every window with an end-of-text token, and the tokenizer of {model.spec.name} has none."
        )
    return lead


def mask_token(model: Model, *, evaluator: str) -> int:
    """The token that hides another, or refuse a tokenizer that has none."""
    mask = text_family(model).tokenizer(model).mask_token_id
    if mask is None:
        raise RequestError(
            f"{evaluator} of a masked-lm model needs a mask token, and the tokenizer of {model.spec.name} has none."
        )
    return int(mask)


def _nats(model: Model, window: Window) -> float:
    """Sum of -log p over the tokens after those that are given."""
    family = model.family
    assert isinstance(family, TextFamily)
    ids_T = torch.tensor([window.ids], device=model.device)
    labels_T = ids_T[0, window.given :]
    split = family.body_and_head(model.module)
    if split is None:
        logits = family.forward(model, batch_of(model, window))[0, window.given - 1 : -1]
        return float(F.cross_entropy(logits.float().flatten(0, -2), labels_T.flatten(), reduction="sum"))
    body, head = split
    hidden_TD = body(input_ids=ids_T, use_cache=False).last_hidden_state[0, window.given - 1 : -1]
    size = max(1, CHUNK_BYTES // (4 * family.vocabulary(model)))
    pieces = zip(torch.split(hidden_TD, size), torch.split(labels_T, size), strict=True)
    return sum(
        float(F.cross_entropy(head(part).float().flatten(0, -2), label.flatten(), reduction="sum"))
        for part, label in pieces
    )


def batch_of(model: Model, window: Window) -> dict[str, torch.Tensor]:
    """A window as the model takes it."""
    ids_T = torch.tensor([window.ids], device=model.device)
    return (
        {"input_ids": ids_T.new_tensor([window.read]), "decoder_input_ids": ids_T}
        if window.read
        else {"input_ids": ids_T}
    )


def require_finite_window(model: Model, nats: float, window: Window) -> None:
    """Refuse a loss that is not a number, by the record."""
    require_finite_outputs(model, torch.tensor([nats]), batch_of(model, window), of=[window.where])


def _masked(model: Model, windows: list[Window]) -> dict[str, Metric]:
    """Loss on 15% of the tokens, replaced by the mask token (Devlin et al. 2019, 1810.04805, section 3.1)."""
    mask = mask_token(model, evaluator="perplexity")
    generator = torch.Generator().manual_seed(0)
    nats, counts = [], []
    with torch.inference_mode():
        for window in windows:
            ids_T = torch.tensor(window.ids, device=model.device)
            hidden = hidden_tokens(window, generator).to(model.device)
            if not hidden.any():
                continue
            logits = model.module(input_ids=ids_T.masked_fill(hidden, mask)[None]).logits[0][hidden]
            nats.append(float(F.cross_entropy(logits.float(), ids_T[hidden], reduction="sum")))
            require_finite_window(model, nats[-1], window)
            counts.append(int(hidden.sum()))
    if not nats:
        raise DataError("The test data is too short: not one token was masked.")
    loss = _ratio(torch.tensor(nats, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64))
    return {"masked_token_loss": {**loss, "unit": "nat", "better": "lower"}}


def hidden_tokens(window: Window, generator: torch.Generator) -> torch.Tensor:
    """Which tokens of a window a masked model is asked for (T,)."""
    hidden = torch.rand(len(window.ids), generator=generator) < 0.15
    hidden[: window.given] = False
    return hidden


def _ratio(over: torch.Tensor, under: torch.Tensor) -> Metric:
    """sum(over) / sum(under) of windows; draws in which no window holds a byte, only tokens that stand for none, are left out."""
    metric = bootstrap(lambda places: float(over[places].sum() / under[places].sum()), len(over))
    return {**metric, "of": "windows"}


class Xz:
    """What `xz -9e` makes of the same text: bits per byte of the records, one after the other, as one stream."""

    Options = CompressorOptions  # none
    label = "xz -9e"

    def measure(self, model: Model | None, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        import lzma

        if data is None:
            raise DataError('xz needs test data: add `test = "..."` to [data].')
        text = "".join(sample.text for sample in data).encode()
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        return {"bits_per_byte": {"value": 8 * len(packed) / len(text), "unit": "bit/B", "better": "lower"}}
