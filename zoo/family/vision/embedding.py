"""Image encoders: images in, the features before a classifier's head out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.family.embedding import Embedding, is_embedding, nearest_samples, shown, vector_rows, vectors_of
from zoo.family.vision.classification import ImageTask, image_family
from zoo.family.vision.windows import Images
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model

COMPARED, SHOWN = 256, 8  # images of the data that a report looks for the nearest among, and those that it shows


class ImageEmbedding(Embedding, ImageTask):
    """The module takes images (B, C, H, W) and returns vectors (B, D)."""

    def rows(self, model: Model, batch: Batch) -> dict[str, Rows]:
        return vector_rows(model.family.forward(model, batch))

    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's vectors cannot be compared with a student's; "" where they can."""
        return (
            ""
            if is_embedding(teacher)
            else f"distill compares vectors, and the teacher {teacher.spec.name} is of task {teacher.spec.task}."
        )

    def vectors(self, model: Model, images: Sequence[Any]) -> np.ndarray:
        """Return the vectors (N, D) of images, which are whatever `read_image` takes."""
        from zoo.family.vision.images import read_image

        family = image_family(model)
        names = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(images, 1)]
        windows = [{"images": family.preprocess(model, read_image(image))} for image in images]
        return vectors_of(model, windows, of=names)

    def pieces(self, model: Model, images: Sequence[Any]) -> Iterator[str]:
        """The vectors of images as text, one at a time."""
        for number, image in enumerate(images):
            yield ("\n" if number else "") + shown(self.vectors(model, [image])[0])

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Name the images of the data that are nearest to eight of them."""
        from zoo.family.vision.images import data_uri, read_image

        if not data or len(data) < 2:
            return []
        some = [data[i * len(data) // COMPARED] for i in range(COMPARED)] if len(data) > COMPARED else list(data)
        windows = Images(image_family(model), model, some)
        names = [sample.where for sample in some]
        vectors_ND = vectors_of(model, windows, of=names)
        answers = []
        for i in [i * len(some) // SHOWN for i in range(SHOWN)] if len(some) > SHOWN else range(len(some)):
            image = read_image(some[i].fields["image"])
            image.thumbnail((256, 256))
            others = [j for j in range(len(some)) if j != i]
            nearest = nearest_samples(vectors_ND[i], vectors_ND[others], [names[j] for j in others])
            answers.append({"prompt": names[i], "image": data_uri(image), "output": nearest})
        return answers
