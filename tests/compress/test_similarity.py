"""The evaluator of vectors: its figures written out by hand, what it compares with, what it refuses."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from sentences import SENTENCES, plain_folder, sentence_folder
from zoo_compress.similarity import Similarity

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.evaluation.figures import measure
from zoo.evaluation.ranks import spearman
from zoo.model.context import Context

TEXTS = Dataset("texts", [Sample({"text": text}, f"texts:{i}") for i, text in enumerate(SENTENCES)])
PAIRS = Dataset(
    "pairs",
    [
        Sample({"sentence1": a, "sentence2": b, "score": score}, f"pairs:{i}")
        for i, (a, b, score) in enumerate(
            [("w5 w6", "w5 w6", 5), ("w5 w6", "w5 w9", 3.5), ("w8 w9", "w40 w41 w42", 0), ("w20", "w20 w21", 4)]
        )
    ],
)


def quantized(folder):
    model = zoo.load(folder)
    stage = registry.compressor("quantize.nf4")
    model.apply(stage, stage.Options(), Context())
    return model


def cosines(vectors):
    return [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(vectors) for b in vectors[i + 1 :]
    ]


def test_rank_correlation_is_that_of_ranks_with_ties():
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 9, 50).astype(float), draw.normal(size=50)
    assert spearman(x, y) == pytest.approx(float(scipy.spearmanr(x, y).statistic))
    assert spearman(np.array([1.0, 2, 2, 4]), np.array([10.0, 30, 30, 20])) == pytest.approx(
        1 / 3
    )  # 1 2.5 2.5 4, 1 3.5 3.5 2
    assert math.isnan(spearman(x, np.ones(50)))


@pytest.mark.parametrize("make", [plain_folder, sentence_folder])
def test_vectors_are_compared_with_those_of_the_original(make, tmp_path):
    folder = make(tmp_path / "encoder")
    model = zoo.load(quantized(folder).save(tmp_path / "small"))
    figures = measure("similarity", model, TEXTS, options={})
    mine, theirs = (zoo.load(place).generate(list(SENTENCES)) for place in (tmp_path / "small", folder))
    each = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(mine, theirs, strict=True)]
    assert figures["cosine_to_original"]["value"] == pytest.approx(np.mean(each), abs=1e-5) != 1
    ranks = [np.argsort(np.argsort(cosines(vectors))) for vectors in (mine, theirs)]
    assert figures["rank_correlation_to_original"]["value"] == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-3)
    itself = measure("similarity", zoo.load(folder), TEXTS, options={"samples": 4})
    assert itself["cosine_to_original"]["value"] == pytest.approx(1) and itself["cosine_to_original"]["n"] == 4


def test_labelled_pairs_rank_as_people_say(tmp_path):
    model = zoo.load(sentence_folder(tmp_path / "encoder"))
    figure = measure("similarity", model, PAIRS, options={})["spearman"]
    alike = [
        float(np.dot(*model.generate([sample.fields["sentence1"], sample.fields["sentence2"]]))) for sample in PAIRS
    ]
    assert figure["value"] == pytest.approx(spearman(np.array(alike), np.array([5, 3.5, 0, 4]))) and figure["n"] == 4


def test_what_cannot_be_compared_is_refused(tmp_path):
    evaluator, folder = Similarity(), plain_folder(tmp_path / "encoder")
    model = zoo.load(folder)
    with pytest.raises(RequestError, match="is for models that make vectors; tiny-code is a causal-lm model"):
        evaluator.check(zoo.load("tiny-code", device="meta"), TEXTS)
    with pytest.raises(RequestError, match="makes vectors: measure similarity"):
        registry.evaluator("perplexity").check(model, TEXTS)
    with pytest.raises(DataError, match=r"pairs:1: no pair with a score"):
        broken = [PAIRS[0], Sample({"sentence1": "w5", "sentence2": "w6", "score": "much"}, "pairs:1")]
        evaluator.check(model, Dataset("pairs", broken))
    with pytest.raises(DataError, match="no field 'text'"):
        evaluator.check(model, Dataset("odd", [Sample({"sentence1": "w5"}, "odd:0")]))
    small = zoo.load(quantized(folder).save(tmp_path / "small"))
    changed = plain_folder(tmp_path / "other")
    shutil.copy(changed / "config.json", folder / "config.json")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(RequestError, match="whose files are no longer those that this model was made of"):
        evaluator.measure(small, TEXTS, options={})
    shutil.rmtree(folder)
    with pytest.raises(RequestError, match=r"compares with the original, .*which cannot be loaded"):
        evaluator.measure(small, TEXTS, options={})
