"""Evaluation of image classifiers: top-1 accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from zoo.data.dataset import Dataset
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.shares import accuracy
from zoo.family.vision.classifier import VisionFamily
from zoo.model.health import require_finite_outputs
from zoo.model.model import Model
from zoo.options import CompressorOptions


class AccuracyOptions(CompressorOptions):
    """Options of `[evaluate.accuracy]`."""

    samples: int = Field(0, ge=0, examples=[8], description="images to look at, spread evenly over the data; 0: all")
    batch: int = Field(32, ge=1, description="images that run together")


class Accuracy:
    """Share of images whose likeliest class is right, with its Wilson interval, by class, with the confusions."""

    Options = AccuracyOptions

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, without reading an image.

        Raises:
            RequestError: it is no image classifier, or has no classes.
            DataError: a record has no image, or a label of no class.
        """
        if not isinstance(model.family, VisionFamily):
            raise RequestError(f"accuracy is for image classifiers; {model.spec.name} is {model.spec.modality}.")
        model.family.labels(model)  # says what to do where there are none
        model.family.check_data(model, data, length=1)

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Measure; `options` are those of `AccuracyOptions`.

        Raises:
            DataError: there is no data, or a record without an image or with a label of no class.
        """
        if data is None:
            raise DataError(
                f'accuracy needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.'
            )
        self.check(model, data)
        family = model.family
        assert isinstance(family, VisionFamily)
        asked, names = AccuracyOptions(**options), family.labels(model)
        windows = family.windows(model, data, length=1)
        count = min(asked.samples or len(windows), len(windows))
        picked = [i * len(windows) // count for i in range(count)]
        right: list[str] = []
        said: list[str] = []
        with torch.inference_mode():
            for start in range(0, count, asked.batch):
                some = picked[start : start + asked.batch]
                batch = family.collate(model, [windows[i] for i in some])
                images = {"images": batch["images"].to(model.device)}
                logits_BV = family.forward(model, images)
                require_finite_outputs(model, logits_BV, images, of=[data[i].where for i in some])
                right += [names[i] for i in batch["labels"].tolist()]
                said += [names[i] for i in logits_BV.argmax(-1).tolist()]
        return {"accuracy": accuracy(right, said, groups=right, order=names)}
