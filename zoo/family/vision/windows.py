"""Images as windows: each record's image, with its label where classes are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    from zoo.data.dataset import Sample
    from zoo.family.vision.classifier import VisionFamily
    from zoo.model.model import Model


class Images(Sequence[Batch]):
    """Records as images (C, H, W), read when they are asked for."""

    def __init__(self, family: VisionFamily, model: Model, data: Sequence[Sample]) -> None:
        from zoo.errors import DataError

        self.family, self.model, self.data = family, model, data
        for sample in data:
            if "image" not in sample.fields:
                raise DataError(f"{sample.where}: no field 'image'; {model.spec.name} reads images.")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        from zoo.data.dataset import naming_record
        from zoo.family.vision.images import read_image

        with naming_record(self.data[index]):
            image = read_image(self.data[index].fields["image"])
        return {"images": self.family.preprocess(self.model, image)}

    def where(self, index: int) -> str:
        return self.data[index].where

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


class LabelledImages(Images):
    """The same with their labels, which are checked at once."""

    def __init__(self, family: VisionFamily, model: Model, data: Sequence[Sample]) -> None:
        from zoo.family.vision.labels import label_of

        names, aliases = family.labels(model), family.aliases(model)
        super().__init__(family, model, data)
        self.targets = [label_of(sample, names, aliases) for sample in data]

    def __getitem__(self, index: Any) -> Any:
        import torch

        return {**super().__getitem__(index), "labels": torch.tensor(self.targets[index])}
