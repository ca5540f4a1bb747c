"""Evaluation of embedding models: how near their vectors are to the original's, and what labelled pairs say.

Legend: N samples, D width of a vector, P pairs of samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoo.data.dataset import Dataset
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.intervals import bootstrap
from zoo.evaluation.ranks import spearman
from zoo.family.base import window_origin
from zoo.family.embedding import is_embedding, unit, vectors_of
from zoo.loading.original import original_of
from zoo.model.model import Model
from zoo.options import CompressorOptions

if TYPE_CHECKING:
    import numpy as np
    import torch

Metric = dict[str, Any]
SCORE = "score"  # what a record calls how alike its two sentences are
RELATED = 256  # samples of which every two are compared
LONGEST = 2**30  # tokens: a sentence is cut where the model asks for it


class SimilarityOptions(CompressorOptions):
    """Options of `[evaluate.similarity]`."""

    samples: int = Field(
        512, ge=0, examples=[8], description="samples compared with the original's, spread evenly over the data; 0: all"
    )


class Similarity:
    """Mean cosine to the original's vectors, rank correlation of the similarities of pairs to the original's, and to labels.

    The original is the model that the first stage began with, which the model's manifest names; without stages it is the
    model itself. The similarity of two samples is the cosine of their vectors, and of at most 256 samples every two are
    compared. Where records are pairs, "sentence1", "sentence2" and a "score", of all of them the correlation of the
    similarities with the scores is given too, as on the STS benchmark (Cer et al. 2017, 1708.00055). Correlations are
    Spearman's; the intervals are a 95% bootstrap over samples, or over labelled pairs.
    """

    Options = SimilarityOptions
    version = 2  # 1: the bootstrap drew from another generator

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, from the model's structure and the records.

        Raises:
            RequestError: it is no embedding model.
            DataError: a record has no sentence or image, or only some of the records are labelled pairs.
        """
        if not is_embedding(model):
            raise RequestError(
                f"similarity is for models that make vectors; {model.spec.name} is a {model.spec.task} model."
            )
        model.family.check_data(model, data, length=LONGEST)
        _scores(data)

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; `options` are those of `SimilarityOptions`.

        Raises:
            DataError: there is no data.
            RequestError: the original cannot be had.
        """
        if data is None:
            raise DataError(
                f'similarity needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.'
            )
        self.check(model, data)
        count = SimilarityOptions(**options).samples or len(data)
        some = data if count >= len(data) else Dataset(data.name, [data[i * len(data) // count] for i in range(count)])
        figures = _to_original(_vectors(model, some), _vectors(original_of(model, evaluator="similarity"), some))
        if scores := _scores(data):
            figures["spearman"] = _to_labels(_vectors(model, data), scores)
        return figures


def _vectors(model: Model, data: Dataset) -> np.ndarray:
    """Vectors of length 1 of all sentences or images (N, D)."""
    windows = model.family.windows(model, data, length=LONGEST)
    return unit(vectors_of(model, windows, of=[window_origin(windows, i) for i in range(len(windows))]))


def _to_original(mine_ND: np.ndarray, theirs_ND: np.ndarray) -> dict[str, Metric]:
    """Compare vectors with the original's: each with its own, where both have one width, and how they lie to one another."""
    import numpy as np

    figures: dict[str, Metric] = {}
    if mine_ND.shape == theirs_ND.shape:
        cosine_N = (mine_ND * theirs_ND).sum(-1)
        mean = bootstrap(lambda places: float(cosine_N[places.numpy()].mean()), len(cosine_N))
        figures["cosine_to_original"] = {**mean, "better": "higher"}
    step = max(1, math.ceil(len(mine_ND) / RELATED))
    (mine_NN, theirs_NN), count = (v[::step] @ v[::step].T for v in (mine_ND, theirs_ND)), len(mine_ND[::step])
    if count > 2:
        upper = np.triu(np.ones((count, count), dtype=bool), 1)

        def correlation(drawn: torch.Tensor) -> float:
            places = drawn.numpy()
            apart = upper & (places[:, None] != places[None])  # a sample that was drawn twice is no pair
            return spearman(mine_NN[np.ix_(places, places)][apart], theirs_NN[np.ix_(places, places)][apart])

        value = bootstrap(correlation, count, draws=100)
        if math.isfinite(value["value"]):
            figures["rank_correlation_to_original"] = {**value, "better": "higher"}
    return figures


def _to_labels(vectors_ND: np.ndarray, scores: Sequence[float]) -> Metric:
    """The correlation of the cosines of pairs with what people said of them."""
    import numpy as np

    cosine_P, score_P = (vectors_ND[0::2] * vectors_ND[1::2]).sum(-1), np.array(scores)
    value = bootstrap(lambda places: spearman(cosine_P[places.numpy()], score_P[places.numpy()]), len(scores))
    if not math.isfinite(value["value"]):
        raise DataError("similarity: all scores, or all similarities, are equal, and nothing correlates with that.")
    return {**value, "of": "pairs", "better": "higher"}


def _scores(data: Dataset) -> list[float]:
    """The scores of labelled pairs; none where the records are not such.

    Raises:
        DataError: names the first record that is none where others are, or whose score is no number.
    """
    if not any(sample.is_pair and SCORE in sample.fields for sample in data):
        return []
    scores = []
    for sample in data:
        score = _number(sample.fields.get(SCORE))
        if not sample.is_pair or not math.isfinite(score):
            raise DataError(
                f"{sample.where}: no pair with a score, and other records are: write 'sentence1', 'sentence2' and a "
                "number as 'score'."
            )
        scores.append(score)
    return scores


def _number(value: Any) -> float:
    """A number, also one written in a table of texts; nan for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return math.nan
