"""Image classification: how fast images are read, and what a report shows of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from zoo.family.task import Task
from zoo.family.vision.windows import Images, LabelledImages
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.family.vision.classifier import VisionFamily
    from zoo.model.model import Model


class ImageTask(Task):
    """What models that read images are for."""

    does: ClassVar[str] = "reads"  # with images, in a sentence

    def windows(self, model: Model, data: Dataset) -> Sequence[Batch]:
        """Take every record's image for a window."""
        return Images(image_family(model), model, data)

    @abstractmethod
    def rows(self, model: Model, batch: Batch) -> dict[str, Rows]:
        """Return the rows that losses compare, one an image; what the module gives stands in for the hidden state."""

    @abstractmethod
    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's rows cannot be compared with a student's; "" where they can."""

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one pass over eight images; token counts mean nothing here."""
        import time

        import torch

        batch = model.family.example(model, batch=8)
        start = time.perf_counter()
        with torch.inference_mode():
            model.family.forward(model, batch)
        return {"images_per_s": 8 / (time.perf_counter() - start)}


class ImageClassification(ImageTask):
    """An image is of one of several classes."""

    name: ClassVar[str] = "image-classification"
    does: ClassVar[str] = "classifies"

    def windows(self, model: Model, data: Dataset) -> Sequence[Batch]:
        return LabelledImages(image_family(model), model, data)

    def rows(self, model: Model, batch: Batch) -> dict[str, Rows]:
        import torch

        logits_BV = model.family.forward(model, batch)
        sample_B = torch.arange(len(logits_BV), device=logits_BV.device)
        return {"label": Rows(logits_BV, lambda logits: logits, sample_B, batch.get("labels"))}

    def comparable(self, student: Model, teacher: Model) -> str:
        mine, theirs = (list(m.family.labels(m)) for m in (student, teacher) if hasattr(m.family, "labels"))
        if mine == theirs:
            return ""
        what = f"{len(mine)} classes and {len(theirs)}" if len(mine) != len(theirs) else "other classes"
        return f"distill compares distributions over the same classes; {student.spec.name} and {teacher.spec.name} have {what}."

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Classify eight images spread over the data."""
        from zoo.data.dataset import naming_record
        from zoo.family.vision.images import data_uri, read_image
        from zoo.family.vision.labels import label_of

        answers = []
        family = image_family(model)
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


def image_family(model: Model) -> VisionFamily:
    """The family of a model that reads images."""
    return cast("VisionFamily", model.family)


def image_task(model: Model) -> ImageTask:
    """What a model that reads images is for."""
    return image_family(model).task(model.spec.task)
