"""What things are tried with: options, a little data that fits a model, and what a stage may use of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.context import Context
    from zoo.model.model import Model

LINES = (
    "def add(first, second):\n    return first + second\n",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.\n",
    "for number in range(10):\n    print(number, number ** 2)\n",
    "What is written down is remembered; what is measured is known.\n",
)


class Roles(Mapping[str, "Dataset"]):
    """The same data in every role, whatever it is called; notes which roles were asked for."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.asked: list[str] = []

    def __getitem__(self, role: str) -> Dataset:
        self.asked.append(role)
        return self.data

    def __contains__(self, role: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(("train", "calibration", "test"))

    def __len__(self) -> int:
        return 3


def context_for(model: Model, *, seed: int = 0) -> Context:
    """What a stage may use: the same data in every role, and the model itself as the teacher."""
    from zoo.model.context import Context

    return Context(seed=seed, data=Roles(data_for(model)), load=lambda _: model.copy())


def data_for(model: Model) -> Dataset:
    """A little data that fits the model: text, or pictures, each with a question, a text and a label."""
    from zoo.data.dataset import Dataset, Sample

    if model.spec.modality == "text":
        texts = ["".join(LINES[i:] + LINES[:i]) * 40 for i in range(2)]
        return Dataset("texts", [Sample({"text": text}, f"texts:{i}") for i, text in enumerate(texts)])
    names = _classes(model)
    fields = [
        {"image": picture(seed=i), "prompt": "What digit is this?", "text": str(i), "label": i % names}
        for i in range(8)
    ]
    return Dataset("pictures", [Sample(one, f"pictures:{i}") for i, one in enumerate(fields)])


def picture(*, seed: int = 0) -> Any:
    """A picture of noise, (32, 32, 3) uint8."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def options(kind: Any, *, attempt: int = 0) -> dict[str, Any]:
    """What a thing with `Options` is run with: the examples its fields give, in turn where they give several."""
    chosen = {}
    for name, field in kind.model_fields.items():
        if field.examples:
            chosen[name] = field.examples[min(attempt, len(field.examples) - 1)]
    return chosen


def attempts(kind: Any) -> int:
    """How many sets of options the examples make."""
    return max((len(field.examples or ()) for field in kind.model_fields.values()), default=1) or 1


def options_of(registered: Any) -> dict[str, Any]:
    """What an evaluator is run with: the examples of its options, nothing where it has none."""
    kind = getattr(registered, "Options", None)
    return options(kind) if kind is not None else {}


def awake(model: Model) -> Model:
    """Give parameters that begin as zero small numbers, so that every weight matters to the output."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _classes(model: Model) -> int:
    """How many classes a classifier has; 8, one a picture, for models that name none."""
    try:
        return len(model.family.labels(model)) if hasattr(model.family, "labels") else 8
    except ZooError:
        return 8
