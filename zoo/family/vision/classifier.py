"""Image classifiers: labelled images, class logits, the likeliest classes as the answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import Family
from zoo.family.options import GenerateOptions
from zoo.family.vision.classification import ImageClassification, ImageTask, image_task
from zoo.family.vision.embedding import ImageEmbedding
from zoo.family.vision.options import VisionOptions
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


TASKS: dict[str, ImageTask] = {task.name: task for task in (ImageClassification(), ImageEmbedding())}


class VisionFamily(Family):
    """What image classifiers share: labelled images, class logits, the likeliest classes as the answer.

    The module takes images (B, C, H, W) and returns logits (B, V); one of the task "embedding" returns vectors (B, D).
    """

    modality: ClassVar[str] = "vision"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    kinds: ClassVar[tuple[str, ...]] = ("label",)
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "cross-entropy"},)
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "kl"},)
    evaluation: ClassVar[tuple[str, str]] = ("accuracy", "")  # which images there are depends on the classes
    Options: ClassVar[type[GenerateOptions] | None] = VisionOptions
    needs_processor: ClassVar[bool] = False

    def task(self, name: str) -> ImageTask:
        return TASKS.get(name, TASKS[ImageClassification.name])

    @abstractmethod
    def input_size(self, model: Model) -> tuple[int, int, int]:
        """Channels, height and width of what the module reads."""

    @abstractmethod
    def preprocess(self, model: Model, image: Image) -> torch.Tensor:
        """Turn an RGB image of any size into what the module reads (C, H, W)."""

    @abstractmethod
    def labels(self, model: Model) -> Sequence[str]:
        """The name of every class, in the order of the logits."""

    def aliases(self, model: Model) -> Mapping[str, Sequence[int]]:
        """What else a label may call a class, as `plain_name` writes it, and the classes that each could mean."""
        return {}

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Refuse a record without an image or with a label of no class; no image is read."""
        self.windows(model, data, length=length)

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        """Noise of the module's own input size; `size` is for models that read tokens."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        return {"images": torch.randn(batch, *self.input_size(model), generator=generator).to(model.device)}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, V), or vectors."""
        import torch

        # training widens all parameters; else batch norms may be wider than the model
        floats = {p.dtype for p in model.module.parameters() if p.is_floating_point()}
        dtype = floats.pop() if len(floats) == 1 else getattr(torch, model.dtype)
        logits: torch.Tensor = model.module(batch["images"].to(dtype))
        return logits

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """One item a record: its "image", and, where classes are learnt, its "label" (a number or a name; without it, its text)."""
        return image_task(model).windows(model, data)

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        return image_task(model).rows(model, batch)

    def comparable(self, student: Model, teacher: Model) -> str:
        return image_task(student).comparable(student, teacher)

    def classify(self, model: Model, images: Sequence[Any], *, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the likeliest classes of each image, each with its probability; images are whatever `read_image` takes."""
        import torch

        from zoo.family.vision.images import read_image
        from zoo.model.health import require_finite_outputs

        names = self.labels(model)
        likeliest = []
        for number, image in enumerate(images, 1):
            batch = {"images": self.preprocess(model, read_image(image))[None].to(model.device)}
            with torch.inference_mode():
                logits_V = self.forward(model, batch)[0].float()
            require_finite_outputs(
                model, logits_V, batch, of=str(image) if isinstance(image, str | Path) else f"image {number}"
            )
            chances_V = logits_V.softmax(-1)
            best = chances_V.topk(min(count, len(names)))
            likeliest.append([(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
        return likeliest

    def generate(self, model: Model, prompt: Any = None, **options: Any) -> Any:
        """Name the likeliest classes of images, one a line; of a model without classes return its vector, of several (N, D).

        Args:
            prompt: an image or a list of them, instead of `images`.
            options: `images`, `count` (5; how many classes), `stream` (True: an iterator, one piece an image).

        Raises:
            RequestError: there is no image, or an option is unknown.
            DataError: an image cannot be read.
        """
        from zoo.errors import RequestError, spelled

        self.check_options(model, options)
        images = options.get("images") or prompt
        several = isinstance(images, list | tuple)
        images = list(images) if isinstance(images, list | tuple) else [images]
        if not images or images[0] is None:
            raise RequestError(
                f"{model.spec.name} {image_task(model).does} images, and there is none. Give one with {spelled('images=[...]', '--image PATH')}."
            )
        task = image_task(model)
        if isinstance(task, ImageEmbedding):
            if options.get("stream"):
                return task.pieces(model, images)
            vectors = task.vectors(model, images)
            return vectors if several else vectors[0]
        count = options.get("count", 5)

        def answers() -> Iterator[str]:
            for number, image in enumerate(images):
                lines = [f"{100 * p:5.1f} %  {name}" for name, p in self.classify(model, [image], count=count)[0]]
                yield ("\n\n" if number else "") + "\n".join(lines)

        return answers() if options.get("stream") else "".join(answers())
