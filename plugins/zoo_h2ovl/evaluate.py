"""Exact match: how many questions about images a model answers word for word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from zoo_compress.accuracy import accuracy

from zoo.compressor import CompressorOptions
from zoo.data import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.family import VisionLanguageFamily, asked
from zoo.generation import greedy
from zoo.model import Model

DIGITS = "0123456789"


class ExactMatchOptions(CompressorOptions):
    """Options of `[evaluate.exact-match]`."""

    max_samples: int = Field(0, ge=0, description="records to ask about, spread evenly over the data; 0: all")
    max_new_tokens: int = Field(16, ge=1, description="longest answer in tokens")
    batch: int = Field(32, ge=1, description="questions that run together")


class ExactMatch:
    """Share of answers equal to the record's, by its `kind` and `font`; and for single digits which was taken for which.

    Answers are greedy and compared after removing space around them. The interval is Wilson's at 95%.
    """

    Options = ExactMatchOptions

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `ExactMatchOptions`.

        Raises:
            DataError: there is no data, or a record without an image or a question.
        """
        if data is None:
            raise DataError('exact-match needs test data: add `test = "..."` to [data], or pass --data.')
        if not isinstance(model.family, VisionLanguageFamily):
            raise RequestError(f"exact-match is for vision-language models; {model.spec.name} is {model.spec.modality}.")
        wanted = ExactMatchOptions(**options)
        count = min(wanted.max_samples or len(data), len(data))
        picked = [data[i * len(data) // count] for i in range(count)]
        said: list[str] = []
        for start in range(0, count, wanted.batch):
            said += answers(model, picked[start : start + wanted.batch], count=wanted.max_new_tokens)
        true = [sample.text.strip() for sample in picked]
        found = {"exact_match": accuracy(true, said)}
        found["exact_match"].pop("confusion", None)
        groups = {name: [str(sample.fields.get(name, "")) for sample in picked] for name in ("kind", "font")}
        parts = [accuracy(true, said, groups=names).get("by", {}) for names in groups.values()]
        if by := {name: share for part in parts for name, share in part.items() if name}:
            found["exact_match"]["by"] = by
        digits = [(one, other) for one, other, sample in zip(true, said, picked, strict=True) if sample.fields.get("kind") == "digit"]
        if digits:
            shown = [other if len(other) == 1 and other in DIGITS else "other" for _, other in digits]
            confusion = accuracy([one for one, _ in digits], shown, order=[*DIGITS, "other"]).get("confusion")
            found["exact_match"] |= {"confusion": confusion} if confusion else {}
        return found


def answers(model: Model, samples: Sequence[Sample], *, count: int) -> list[str]:
    """Ask the questions of some records together; equal to asking them one by one."""
    family = model.family
    assert isinstance(family, VisionLanguageFamily)
    tokenizer = family.tokenizer(model)
    questions = [family.question(model, *asked(sample)) for sample in samples]
    pixels = torch.cat([beside["pixel_values"] for _, beside in questions])
    found = greedy(model, [ids for ids, _ in questions], count, first={"pixel_values": pixels}, end=tokenizer.eos_token_id)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]
