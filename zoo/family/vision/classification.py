"""Image classification: how fast images are read, and what a report shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.task import Task

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class ImageClassification(Task):
    """An image is of one of several classes."""

    name: ClassVar[str] = "image-classification"

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Classify eight images spread over the data."""
        from zoo.data.dataset import naming_record
        from zoo.family.vision.images import data_uri, read_image
        from zoo.family.vision.labels import label_of

        answers = []
        family: Any = model.family
        names, aliases = family.labels(model), family.aliases(model)
        for sample in [data[i * len(data) // 8] for i in range(min(8, len(data)))] if data else []:
            with naming_record(sample):
                image = read_image(sample.fields["image"])
            (name, chance), *_ = family.classify(model, [image], count=1)[0]
            image.thumbnail((256, 256))
            answers.append(
                {
                    "prompt": sample.where,
                    "image": data_uri(image),
                    "output": name,
                    "note": f"{100 * chance:.0f} %",
                    "expected": names[label_of(sample, names, aliases)],
                }
            )
        return answers

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one pass over eight images; token counts mean nothing here."""
        import time

        import torch

        batch = model.family.example(model, batch=8)
        start = time.perf_counter()
        with torch.inference_mode():
            model.family.forward(model, batch)
        return {"images_per_s": 8 / (time.perf_counter() - start)}
