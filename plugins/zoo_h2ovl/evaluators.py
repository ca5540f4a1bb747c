"""Evaluation of models that answer questions about images: answers word for word, and how likely the right ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field

from zoo.data.dataset import Dataset, Sample, naming_record
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.intervals import delta_method
from zoo.evaluation.shares import accuracy
from zoo.family.text.generate import greedy
from zoo.family.vision.language import VisionLanguageFamily, asked
from zoo.model.health import require_finite_outputs
from zoo.model.model import Model
from zoo.options import CompressorOptions

DIGITS = "0123456789"


class QuestionOptions(CompressorOptions):
    """Which records are asked about, and how many at a time; also the options of `[evaluate.answer-loss]`."""

    max_samples: int = Field(
        0, ge=0, examples=[8], description="records to ask about, spread evenly over the data; 0: all"
    )
    batch: int = Field(32, ge=1, description="questions that run together")


class ExactMatchOptions(QuestionOptions):
    """Options of `[evaluate.exact-match]`."""

    max_new_tokens: int = Field(16, ge=1, description="longest answer in tokens")


class ExactMatch:
    """Share of answers equal to the record's, by its `kind` and `font`; and for single digits which was taken for which.

    Answers are greedy and compared after removing space around them. The interval is Wilson's at 95%.
    """

    Options = ExactMatchOptions

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse another kind of model, and a record without an image or a question; no image is read."""
        _check(model, data, task="exact-match")

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `ExactMatchOptions`.

        Raises:
            DataError: there is no data, or a record without an image or a question.
        """
        wanted = ExactMatchOptions(**options)
        picked = _picked(model, data, wanted.max_samples, task="exact-match")
        said: list[str] = []
        for start in range(0, len(picked), wanted.batch):
            said += answers(model, picked[start : start + wanted.batch], count=wanted.max_new_tokens)
        true = [sample.text.strip() for sample in picked]
        found = {"exact_match": accuracy(true, said)}
        found["exact_match"].pop("confusion", None)
        groups = {name: [str(sample.fields.get(name, "")) for sample in picked] for name in ("kind", "font")}
        parts = [accuracy(true, said, groups=names).get("by", {}) for names in groups.values()]
        if by := {name: share for part in parts for name, share in part.items() if name}:
            found["exact_match"]["by"] = by
        digits = [
            (one, other)
            for one, other, sample in zip(true, said, picked, strict=True)
            if sample.fields.get("kind") == "digit"
        ]
        if digits:
            shown = [other if len(other) == 1 and other in DIGITS else "other" for _, other in digits]
            confusion = accuracy([one for one, _ in digits], shown, order=[*DIGITS, "other"]).get("confusion")
            found["exact_match"] |= {"confusion": confusion} if confusion else {}
        return found


class AnswerLoss:
    """Negative log likelihood of the right answers in nats a token: finer than exact match, since every token counts.

    The interval is 95% by the standard error over the records, each weighed by its tokens.
    """

    Options = QuestionOptions
    version = 2  # 1: an interval of 1.96, not 1.959964, standard errors

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse another kind of model, and a record without an image or a question; no image is read."""
        _check(model, data, task="answer-loss")

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `QuestionOptions`.

        Raises:
            DataError: there is no data, or a record without an image or a question.
        """
        wanted = QuestionOptions(**options)
        picked = _picked(model, data, wanted.max_samples, task="answer-loss")
        family: Any = model.family
        windows = family.windows(model, picked, length=family.context_length(model))
        nats, tokens = torch.zeros(len(picked), dtype=torch.float64), torch.zeros(len(picked), dtype=torch.float64)
        with torch.inference_mode():
            for start in range(0, len(picked), wanted.batch):
                joined = family.collate(
                    model, [windows[i] for i in range(start, min(start + wanted.batch, len(picked)))]
                )
                batch = {name: tensor.to(model.device) for name, tensor in joined.items()}
                rows = family.rows(model, batch, ("label",))["label"]
                loss_N = F.cross_entropy(rows.head(rows.hidden).float(), rows.target, reduction="none").double().cpu()
                require_finite_outputs(model, loss_N, batch, of=[picked[start + i].where for i in rows.sample.tolist()])
                nats.index_add_(0, start + rows.sample.cpu(), loss_N)
                tokens.index_add_(0, start + rows.sample.cpu(), torch.ones_like(loss_N))
        return {"answer_loss": {**delta_method(nats, tokens), "unit": "nat", "better": "lower"}}


def _picked(model: Model, data: Dataset | None, most: int, *, task: str) -> list[Sample]:
    """At most `most` records, evenly spread; 0: all."""
    if data is None:
        raise DataError(f'{task} needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.')
    _check(model, data, task=task)
    count = min(most or len(data), len(data))
    return [data[i * len(data) // count] for i in range(count)]


def _check(model: Model, data: Dataset, *, task: str) -> None:
    if not isinstance(model.family, VisionLanguageFamily):
        raise RequestError(f"{task} is for vision-language models; {model.spec.name} is {model.spec.modality}.")
    model.family.check_data(model, data, length=0)


def answers(model: Model, samples: Sequence[Sample], *, count: int) -> list[str]:
    """Ask the questions of some records together; equal to asking them one by one."""
    family = model.family
    assert isinstance(family, VisionLanguageFamily)
    tokenizer = family.tokenizer(model)
    questions = []
    for sample in samples:
        with naming_record(sample):
            questions.append(family.question(model, *asked(sample)))
    pixels = torch.cat([beside["pixel_values"] for _, beside in questions])
    prompts, places = [ids for ids, _ in questions], [sample.where for sample in samples]
    found = greedy(model, prompts, count, first={"pixel_values": pixels}, end=tokenizer.eos_token_id, of=places)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]
