"""Losses on vectors of whole samples: their formulas written out by hand, and what they do not look at."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from zoo_compress.losses.embeddings import Cosine, RelationalKD
from zoo_compress.train.objective import _shared

from zoo.errors import Refused
from zoo.family import Rows
from zoo.loss import LossOptions

pytestmark = pytest.mark.quick

OPTIONS = RelationalKD.Options()


def vectors(count, width, *, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def rows(vectors_ND):
    return Rows(vectors_ND, lambda hidden: hidden, torch.arange(len(vectors_ND)))


def rkd(mine, theirs, **options):
    return RelationalKD()(mine, theirs, rows(mine), RelationalKD.Options(**options))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def length(a):
    return math.sqrt(sum(x * x for x in a))


def huber(x, y):
    apart = abs(x - y)
    return apart * apart / 2 if apart <= 1 else apart - 0.5


def distances_by_hand(points):
    """psi_D of every two, in order: the distance over the mean distance."""
    apart = [length(minus(a, b)) for a, b in itertools.permutations(points, 2)]
    return [distance * len(apart) / sum(apart) for distance in apart]


def angles_by_hand(points):
    """psi_A of every three, in order: the cosine of the angle at the middle one."""
    found = []
    for i, j, k in itertools.permutations(points, 3):
        one, other = minus(i, j), minus(k, j)
        found.append(sum(a * b for a, b in zip(one, other, strict=True)) / length(one) / length(other))
    return found


def test_cosine_is_one_less_the_cosine():
    mine, theirs = vectors(3, 5), vectors(3, 5, seed=1)
    values = Cosine()(mine, theirs, rows(mine), LossOptions())
    for value, a, b in zip(values, mine.tolist(), theirs.tolist(), strict=True):
        assert float(value) == pytest.approx(
            1 - sum(x * y for x, y in zip(a, b, strict=True)) / length(a) / length(b), abs=1e-6
        )


def test_relations_are_those_of_the_paper_of_vectors_of_two_widths():
    mine, theirs = vectors(5, 4), 3 * vectors(5, 7, seed=1)
    points = mine.tolist(), theirs.tolist()
    for options, relation in (({"angle": 0}, distances_by_hand), ({"distance": 0, "angle": 1}, angles_by_hand)):
        pairs = list(zip(*map(relation, points), strict=True))
        by_hand = sum(huber(x, y) for x, y in pairs) / len(pairs)
        assert float(rkd(mine, theirs, **options)) == pytest.approx(by_hand, rel=1e-4)
    assert float(rkd(mine, theirs)) == pytest.approx(
        float(rkd(mine, theirs, angle=0)) + 2 * float(rkd(mine, theirs, distance=0, angle=1)), rel=1e-5
    )


def test_relations_do_not_change_when_a_space_is_turned_moved_or_scaled():
    mine, theirs = vectors(6, 8), vectors(6, 8, seed=1)
    turn, _ = torch.linalg.qr(vectors(8, 8, seed=2))
    assert float(rkd(5 * mine @ turn + 1, theirs)) == pytest.approx(float(rkd(mine, theirs)), rel=1e-4)
    assert float(rkd(5 * theirs @ turn + 1, theirs)) < 1e-8


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_student_that_is_its_teacher_is_not_moved_and_twins_give_numbers(count):
    theirs = vectors(count, 4)
    theirs[-1] = theirs[0]  # the same sentence twice
    mine = theirs.clone().requires_grad_()
    value = rkd(mine, theirs) + Cosine()(mine, theirs, rows(mine), LossOptions()).mean()
    value.backward()
    assert float(value.detach()) < 1e-6 and float(mine.grad.abs().max()) < 1e-5
    moved = (theirs + vectors(count, 4, seed=3)).requires_grad_()
    rkd(moved, theirs).backward()
    assert bool(torch.isfinite(moved.grad).all())


def test_vectors_of_two_widths_are_not_cut_and_have_no_cosine():
    mine, theirs = vectors(3, 4), vectors(3, 6, seed=1)
    assert [v.shape[-1] for v in _shared(RelationalKD(), mine, theirs)] == [4, 6]
    with pytest.raises(Refused, match=r"have 4 numbers, the teacher's 6\. .*use = \"rkd\""):
        Cosine()(*_shared(Cosine(), mine, theirs), rows(mine), LossOptions())
