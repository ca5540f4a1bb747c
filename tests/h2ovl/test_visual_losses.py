"""The losses of LLaVA-KD: fixtures worked out by hand, and the authors' formula written with loops."""

from __future__ import annotations

import math

import pytest
import torch
from toy_vlm import records, toy
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train.objective import Objective
from zoo_h2ovl.losses import VisualKL, VisualRelation

from zoo.family import Rows

pytestmark = pytest.mark.quick


def rows(sample):
    sample_N = torch.tensor(sample)
    return Rows(sample_N, lambda hidden: hidden, sample_N)


def relation(student, teacher, sample):
    return VisualRelation()(student, teacher, rows(sample), VisualRelation.Options())


def test_visual_kl_of_the_fixture():
    value = VisualKL()(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]]), rows([0]), VisualKL.Options())
    assert float(value) == pytest.approx(0.130812, abs=1e-6)


def test_visual_relation_of_the_fixture():
    value = relation(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), [0, 0])
    assert float(value) == pytest.approx(1 - 3 / math.sqrt(14), abs=1e-6)


def test_visual_relation_takes_one_cosine_over_the_matrices_of_all_samples():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=generator) for _ in range(2))
    sample = [0, 0, 0, 1, 1]
    pairs = [(i, j) for i in range(5) for j in range(5) if sample[i] == sample[j]]  # never between samples
    mine, theirs = ([float(logits[i] @ logits[j]) for i, j in pairs] for logits in (student, teacher))
    dot = sum(a * b for a, b in zip(mine, theirs, strict=True))
    expected = 1 - dot / math.sqrt(sum(a * a for a in mine) * sum(b * b for b in theirs))
    assert float(relation(student, teacher, sample)) == pytest.approx(expected, abs=1e-6)


def test_visual_relation_is_zero_between_a_model_and_itself_whatever_the_scale():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    assert float(relation(3 * logits, logits, [0, 0, 1, 1, 2, 2])) == pytest.approx(0, abs=1e-6)


def test_a_batch_without_images_costs_nothing():
    empty = torch.zeros(0, 4, requires_grad=True)
    value = relation(empty, torch.zeros(0, 4), [])
    value.backward()
    assert float(value.detach()) == 0


def test_distillation_sums_answer_and_image_losses_with_their_weights():
    student, teacher = toy(), toy()
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.mul_(1.1)
    windows = student.family.windows(student, records(), length=128)
    batch = student.family.collate(student, [windows[i] for i in range(3)])
    losses, _ = resolve_losses([{"use": "cross-entropy"}, *student.family.distillation])
    values = Objective(student, teacher, losses)(batch)
    expected = values["cross-entropy"] + values["kl"] + values["visual-kl"] + 0.5 * values["visual-relation"]
    torch.testing.assert_close(values["loss"], expected)
    assert all(float(values[name].detach()) > 0 for name in values)
