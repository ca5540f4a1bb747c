"""Losses and objective: formulas written out by hand, and the same sum however it is cut into chunks."""

from __future__ import annotations

import math

import pytest
import torch
from stages import small
from torch import nn
from twins import CAUSAL, VOCABULARY, tokens
from zoo_compress.losses.features import HiddenState
from zoo_compress.losses.rows import CrossEntropy, ForwardKL
from zoo_compress.train import objective
from zoo_compress.train.objective import Objective

from zoo.family import Rows
from zoo.loss import LossOptions

pytestmark = pytest.mark.quick

CE = ("cross-entropy", CrossEntropy(), LossOptions())


def kl(**options):
    return ("kl", ForwardKL(), ForwardKL.Options(**options))


def hidden(**options):
    return ("hidden", HiddenState(), HiddenState.Options(**options))


def batch(*, ignore=()):
    ids = tokens(length=13)
    labels = ids[:, 1:].clone()
    for row, column in ignore:
        labels[row, column] = -100
    return {"input_ids": ids[:, :-1], "labels": labels}


def rows(target_N):
    """Rows whose labels are all that a loss reads."""
    return Rows(target_N, lambda hidden: hidden, target_N, target_N)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- formulas -------------------------------------------------------------------------------------------------------


def softmax_by_hand(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_forward_kl_is_its_formula(temperature):
    student_NV, teacher_NV = 3 * normal(4, 7), 3 * normal(4, 7, seed=1)
    values = ForwardKL()(student_NV, teacher_NV, rows(torch.zeros(4)), ForwardKL.Options(temperature=temperature))
    for value, mine, theirs in zip(values, student_NV.tolist(), teacher_NV.tolist(), strict=True):
        p, q = softmax_by_hand(theirs, temperature), softmax_by_hand(mine, temperature)
        by_hand = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(value) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_of_forward_kl_is_the_difference_of_the_distributions(temperature):
    student_NV, teacher_NV = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    ForwardKL()(
        student_NV, teacher_NV, rows(torch.zeros(3)), ForwardKL.Options(temperature=temperature)
    ).sum().backward()
    expected = temperature * ((student_NV / temperature).softmax(-1) - (teacher_NV / temperature).softmax(-1))
    torch.testing.assert_close(student_NV.grad, expected.detach())


def test_a_student_equal_to_its_teacher_has_no_kl_and_no_gradient():
    student_NV = (5 * normal(6, 9)).requires_grad_()
    values = ForwardKL()(
        student_NV, student_NV.detach().clone(), rows(torch.zeros(6)), ForwardKL.Options(temperature=2)
    )
    values.sum().backward()
    assert float(values.detach().abs().max()) < 1e-6 and float(student_NV.grad.abs().max()) < 1e-6


def test_forward_kl_is_never_negative_and_survives_large_logits():
    values = ForwardKL()(1e4 * normal(8, 5), 1e4 * normal(8, 5, seed=1), rows(torch.zeros(8)), ForwardKL.Options())
    assert bool(torch.isfinite(values).all()) and float(values.min()) >= 0


def test_cross_entropy_is_the_log_of_the_probability_of_the_label():
    student_NV, label_N = normal(4, 7), torch.tensor([0, 3, 6, 2])
    values = CrossEntropy()(student_NV, None, rows(label_N), LossOptions())
    for value, logits, label in zip(values, student_NV.tolist(), label_N.tolist(), strict=True):
        assert float(value) == pytest.approx(-math.log(softmax_by_hand(logits, 1.0)[label]), rel=1e-5)


def test_bfloat16_logits_are_compared_in_float32():
    student_NV, teacher_NV = normal(4, 7).bfloat16(), normal(4, 7, seed=1).bfloat16()
    values = ForwardKL()(student_NV, teacher_NV, rows(torch.zeros(4)), ForwardKL.Options())
    wide = ForwardKL()(student_NV.float(), teacher_NV.float(), rows(torch.zeros(4)), ForwardKL.Options())
    assert values.dtype == torch.float32 and torch.equal(values, wide)


# --- hidden states --------------------------------------------------------------------------------------------------


def compared(depths, **options):
    """Which (student, teacher) blocks, counted from 1, a hidden-state loss compares: found by changing each."""
    loss = HiddenState().build(layers=depths, widths=(4, 4), options=HiddenState.Options(**options), seed=0)
    pairs = []
    for i in range(depths[0]):
        for j in range(depths[1]):
            student = [torch.ones(1, 2, 4) for _ in range(depths[0])]
            teacher = [torch.ones(1, 2, 4) for _ in range(depths[1])]
            student[i] = teacher[j] = 3 * torch.ones(1, 2, 4)
            matched = float(loss(student, teacher))
            student[i] = torch.ones(1, 2, 4)
            if matched < float(loss(student, teacher)):
                pairs.append((i + 1, j + 1))
    return pairs


def test_three_blocks_learn_from_the_second_fourth_and_sixth_of_six():
    assert compared((3, 6)) == [(1, 2), (2, 4), (3, 6)]


def test_equal_depths_are_compared_one_to_one():
    assert compared((4, 4)) == [(i, i) for i in range(1, 5)]


def test_last_compares_the_last_blocks_only():
    assert compared((3, 6), layers="last") == [(3, 6)]


def test_a_student_deeper_than_its_teacher_learns_from_blocks_that_exist():
    found = compared((4, 2))
    assert [student for student, _ in found] == [1, 2, 3, 4]
    assert [teacher for _, teacher in found] == sorted(teacher for _, teacher in found)


def test_hidden_states_are_compared_relative_to_the_teacher_token_by_token():
    student, teacher = [normal(2, 3, 4)], [normal(2, 3, 4, seed=1)]
    loss = HiddenState().build(layers=(1, 1), widths=(4, 4), options=HiddenState.Options(), seed=0)
    tokens_by_hand = [
        sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / sum(b**2 for b in theirs)
        for mine, theirs in zip(student[0].flatten(0, 1).tolist(), teacher[0].flatten(0, 1).tolist(), strict=True)
    ]
    by_hand = sum(tokens_by_hand) / len(tokens_by_hand)
    assert float(loss(student, teacher)) == pytest.approx(by_hand, rel=1e-5)
    scaled = loss([10 * student[0]], [10 * teacher[0]])
    assert float(scaled) == pytest.approx(by_hand, rel=1e-5)
    assert float(loss(teacher, teacher)) == 0


def test_a_narrower_student_is_lifted_by_a_map_that_follows_from_the_seed():
    before = torch.get_rng_state()
    made = [HiddenState().build(layers=(1, 1), widths=(4, 6), options=HiddenState.Options(), seed=s) for s in (0, 0, 1)]
    first, again, other = (next(iter(loss.parameters())).detach() for loss in made)
    assert first.shape == (6, 4) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    student, teacher = normal(2, 3, 4), normal(2, 3, 6, seed=1)
    expected = ((student @ first.T - teacher).pow(2).sum(-1) / teacher.pow(2).sum(-1)).mean()
    assert float(made[0]([student], [teacher]).detach()) == pytest.approx(float(expected), rel=1e-5)


# --- objective ------------------------------------------------------------------------------------------------------


def step(student, teacher, losses, *, features=(), data=None):
    student.module.zero_grad()
    values = Objective(student, teacher, losses, features)(data or batch())
    values["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in student.module.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in values.items()}, gradients


@pytest.mark.parametrize("name", CAUSAL)
def test_cross_entropy_is_the_model_s_own_loss(name):
    """The reference is transformers' loss on its own logits: heads with a soft cap or a projection must not differ."""
    model, data = small(name), batch(ignore=[(0, 3), (1, 11)])
    values, gradients = step(model, None, [CE], data=data)
    model.module.zero_grad()
    logits = model.module(input_ids=data["input_ids"]).logits.float()
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), data["labels"].flatten())
    expected.backward()
    torch.testing.assert_close(values["loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.module.get_parameter(key).grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("per_chunk", [1, 5, 24])
def test_the_chunk_size_changes_neither_loss_nor_gradients(per_chunk, monkeypatch):
    student, teacher = small("llama-tied"), small("llama-tied", seed=1)
    losses = [kl(temperature=2.0), ("cross-entropy", CrossEntropy(), LossOptions(weight=0.5))]
    data = batch(ignore=[(0, 0), (1, 5)])
    whole, whole_gradients = step(student, teacher, losses, data=data)
    monkeypatch.setattr(objective, "CHUNK_BYTES", 4 * VOCABULARY * per_chunk)
    cut, cut_gradients = step(student, teacher, losses, data=data)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-6, atol=1e-6)
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_sum_is_weighted_and_every_loss_is_reported():
    student, teacher = small("llama"), small("llama", seed=1)
    alone = {loss[0]: step(student, teacher, [loss])[0]["loss"] for loss in (kl(), CE)}
    both, _ = step(student, teacher, [kl(weight=2.0), ("cross-entropy", CrossEntropy(), LossOptions(weight=0.25))])
    assert set(both) == {"loss", "kl", "cross-entropy"}
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value)
    torch.testing.assert_close(both["loss"], 2 * alone["kl"] + alone["cross-entropy"] / 4)


def test_masked_labels_count_for_nothing():
    """The loss over a window with masked tails is the mean over the tokens that are left, whatever the rest holds."""
    student, teacher = small("llama"), small("llama", seed=1)
    masked = [(row, column) for row in range(2) for column in range(8, 12)]
    values, _ = step(student, teacher, [kl(), CE], data=batch(ignore=masked))
    short = {name: tensor[:, :8] for name, tensor in batch().items()}  # causal: what follows cannot matter
    expected, _ = step(student, teacher, [kl(), CE], data=short)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_rows_of_padding_in_a_table_take_no_part(padded: str):
    """Logits are cut to the shorter table before the softmax; the data's own loss reads all of the student's."""
    student, teacher = small("llama"), small("llama", seed=1)
    expected, _ = step(student, teacher, [kl(), CE])
    other = small("llama", vocab_size=128)
    own = teacher if padded == "teacher" else student
    values = own.tensors()
    with torch.no_grad():
        for name, tensor in other.tensors().items():
            tensor[: len(values[name])].copy_(values[name])
    pair = (student, other) if padded == "teacher" else (other, teacher)
    found, _ = step(*pair, [kl(), CE])
    torch.testing.assert_close(found["kl"], expected["kl"])
    assert torch.equal(found["cross-entropy"], expected["cross-entropy"]) == (padded == "teacher")


def test_a_teacher_equal_to_the_student_leaves_nothing_to_learn():
    student, teacher = small("gpt-neox"), small("gpt-neox")
    values, gradients = step(student, teacher, [kl()], features=[hidden(weight=3.0)])
    assert float(values["loss"]) == pytest.approx(0, abs=1e-6)
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients.values())


def test_the_hidden_loss_sees_the_outputs_of_the_blocks():
    student, teacher = small("llama"), small("llama", seed=1)
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
        for model in (student, teacher)
        for layer in model.module.model.layers
    ]
    values, gradients = step(student, teacher, [CE], features=[hidden()])
    for hook in hooks:
        hook.remove()
    terms = [((seen[i] - seen[2 + i]).pow(2).sum(-1) / seen[2 + i].pow(2).sum(-1)).mean() for i in range(2)]
    torch.testing.assert_close(values["hidden"], (terms[0] + terms[1]) / 2, rtol=1e-5, atol=1e-6)
    assert gradients


def test_the_teacher_is_neither_trained_nor_registered():
    student, teacher = small("llama"), small("llama", seed=1)
    made = Objective(student, teacher, [kl()])
    theirs = {id(p) for p in teacher.module.parameters()}
    assert not theirs & {id(p) for p in made.parameters()}
    step(student, teacher, [kl()])
    assert all(p.grad is None for p in teacher.module.parameters())


def test_a_teacher_nobody_asks_is_not_run():
    student, teacher = small("llama"), small("llama", seed=1)
    teacher.module.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    step(student, teacher, [CE])
