"""The losses of flow matching and of its distillation, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from zoo_snapgen.losses import Reconstruction, TimestepAware, Velocity, VelocityKD, data_share

from zoo.family import Rows
from zoo.loss import LossOptions

pytestmark = pytest.mark.quick


def rows(target: torch.Tensor, time: torch.Tensor) -> Rows:
    return Rows(target, lambda hidden: hidden, torch.arange(len(target)), target, time)


STUDENT = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
TEACHER = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
TARGET = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
PLAIN = LossOptions()


def test_plain_losses_are_means_of_squares():
    given = rows(TARGET, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(Velocity()(STUDENT, None, given, PLAIN), torch.tensor([2.5, 1.0]))
    torch.testing.assert_close(VelocityKD()(STUDENT, TEACHER, given, PLAIN), torch.tensor([0.5, 5.0]))
    torch.testing.assert_close(Reconstruction()(STUDENT, None, given, PLAIN), torch.tensor([2.5, 1.0]))


@pytest.mark.parametrize(("time", "share"), [(0.5, 1.0), (0.25, 0.729), (0.1, 0.249), (0.05, 0.069)])
def test_share_of_the_data_is_symmetric_in_time(time: float, share: float):
    found = data_share(torch.tensor([time, 1 - time]))
    torch.testing.assert_close(found, torch.full((2,), share), atol=5e-4, rtol=0)


def test_share_is_the_logit_normal_density_over_its_middle():
    t = 0.3
    density = math.exp(-(math.log(t / (1 - t)) ** 2) / 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
    assert float(data_share(torch.tensor([t]))) == pytest.approx(density / (4 / math.sqrt(2 * math.pi)), rel=1e-5)
    ends = data_share(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(ends).all() and (ends < 1e-6).all()


def test_timestep_aware_mixes_data_and_teacher_by_time():
    time = torch.tensor([0.5, 0.1])
    found = TimestepAware()(STUDENT, TEACHER, rows(TARGET, time), TimestepAware.Options())
    a = float(data_share(torch.tensor([0.1])))
    # image 0: the middle, data alone. image 1: the ratio 1 / 5 brings the teacher's 5 to the task's 1.
    torch.testing.assert_close(found, torch.tensor([2.5, a * 1.0 + (1 - a) * (1 / 5) * 5.0]))


def test_timestep_aware_equals_the_task_where_the_teacher_agrees_with_the_data():
    student = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    given = rows(target, torch.linspace(0, 1, 6))
    found, task = (loss(student, target, given, TimestepAware.Options()) for loss in (TimestepAware(), Velocity()))
    torch.testing.assert_close(found, task)
    torch.testing.assert_close(*(torch.autograd.grad(one.sum(), student)[0] for one in (found, task)))


def test_ratio_is_bounded_and_not_differentiated():
    student = torch.tensor([[1e-3, 0.0]], requires_grad=True)
    far, near = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    given = rows(far, torch.tensor([1e-6]))  # the teacher alone
    found = TimestepAware()(student, near, given, TimestepAware.Options())
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(100 * 0.5e-6, rel=1e-3)
    assert student.grad is not None and float(student.grad[0, 0]) == pytest.approx(100 * 1e-3, rel=1e-3)


def test_the_teacher_sets_the_direction_and_the_task_the_size():
    """At an end of time the gradient is that of the teacher's error times the ratio, whatever the data says."""
    student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    given = rows(torch.tensor([[3.0, 0.0]]), torch.tensor([1e-6]))  # task 2
    TimestepAware()(student, torch.zeros(1, 2), given, TimestepAware.Options()).sum().backward()  # teacher 1/2, ratio 4
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[4.0, 0.0]]))
