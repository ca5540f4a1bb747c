"""Embedding: a vector for each sample, a sentence or an image; what of it does not depend on the modality.

Legend: N samples, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.task import Task
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model

TOGETHER = 32  # samples that run at once
NEAREST = 3  # vectors that a report names for each


class Embedding(Task):
    """Samples become vectors, of which those of like samples lie near each other; no label says what is right.

    A vector is all that is learnt of a sample, so a teacher's are what a student is trained on.
    """

    name: ClassVar[str] = "embedding"

    def kinds(self, model: Model) -> tuple[str, ...]:
        return (self.name,)

    def losses(self, model: Model) -> tuple[Mapping[str, Any], ...]:
        return ()

    def distillation(self, model: Model) -> tuple[Mapping[str, Any], ...]:
        return {"use": "cosine"}, {"use": "rkd"}

    def makes(self, model: Model) -> str:
        return "vectors"

    def usual_evaluator(self, model: Model, data: Dataset | None) -> str:
        return "similarity"

    def usual_data(self, model: Model) -> str:
        return ""  # nobody knows whose sentences, or images


def is_embedding(model: Model) -> bool:
    """Whether a model makes vectors."""
    return isinstance(model.family.task(model.spec.task), Embedding)


def vector_rows(vectors_ND: torch.Tensor) -> dict[str, Rows]:
    """The rows of kind "embedding": one a sample."""
    import torch

    sample_N = torch.arange(len(vectors_ND), device=vectors_ND.device)
    return {Embedding.name: Rows(vectors_ND, lambda vectors: vectors, sample_N)}


def vectors_of(model: Model, windows: Sequence[Batch], *, of: Sequence[str]) -> np.ndarray:
    """The vectors (N, D) of windows, in float32; long ones run with long ones, so that little is padding.

    Args:
        of: what each is, such as where a record is from, for what is said of one that is not finite.
    """
    import numpy as np
    import torch

    from zoo.model.health import require_finite_outputs

    order = sorted(range(len(windows)), key=lambda i: -sum(t.numel() for t in windows[i].values()))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), TOGETHER):
        some = order[start : start + TOGETHER]
        batch = model.family.collate(model, [windows[i] for i in some])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            vectors_ND = model.family.forward(model, batch)
        require_finite_outputs(model, vectors_ND, batch, of=[of[i] for i in some])
        found.update(zip(some, vectors_ND.float().cpu().numpy(), strict=True))
    return np.stack([found[i] for i in range(len(windows))])


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors of length 1, whose products are cosines."""
    import numpy as np

    lengths: np.ndarray = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    made: np.ndarray = vectors_ND / np.maximum(lengths, 1e-12)
    return made


def nearest_samples(vector_D: np.ndarray, others_ND: np.ndarray, names: Sequence[str]) -> str:
    """The samples whose vectors make the smallest angles with one, a line each, with the cosine."""
    import numpy as np

    cosines_N = unit(others_ND) @ unit(vector_D)
    best = np.argsort(-cosines_N, kind="stable")[:NEAREST]
    return "\n".join(f"{cosines_N[i]:.3f}  {names[i]}" for i in best)


def shown(vector_D: np.ndarray) -> str:
    """A vector as one line of JSON, with every digit that its float32 has."""
    return "[" + ", ".join(f"{value:.9g}" for value in vector_D.tolist()) + "]"
