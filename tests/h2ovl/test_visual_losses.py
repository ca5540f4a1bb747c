"""The losses of LLaVA-KD: fixtures worked out by hand, and the authors' formula written with loops."""

from __future__ import annotations

import math

import pytest
import torch
from toy_vlm import records, toy
from zoo_compress.calibrate.watch import watch
from zoo_compress.losses.resolve import resolve_losses
from zoo_compress.train.objective import Objective
from zoo_h2ovl.losses import VisualKL, VisualRelation

from zoo import registry
from zoo.family import Rows
from zoo.plugins.names import of_kind

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


def test_no_loss_reads_padding():
    """Of every loss of the registry that fits the model: what stands where samples were padded changes nothing."""
    student, teacher = toy(), toy()
    with torch.no_grad():
        for parameter in teacher.module.parameters():
            parameter.mul_(1.1)
    names = [name for name in of_kind("loss") if getattr(registry.loss(name), "kind", "label") in student.family.kinds]
    assert {"kl", "hidden", "visual-relation"} <= set(names)
    windows = student.family.windows(student, records(), length=128)
    batch = student.family.collate(student, list(windows))
    padding = batch["attention_mask"] == 0
    assert padding.any(1).sum() > 1
    found = []
    for token in (0, 77):
        again = {**batch, "input_ids": batch["input_ids"].masked_fill(padding, token)}
        found.append(Objective(student, teacher, *resolve_losses([{"use": name} for name in names]))(again))
    for name in names:
        assert torch.equal(found[0][name], found[1][name]), name


def first(out):
    """A block's output (T, D), of its one sample."""
    return (out[0] if isinstance(out, tuple) else out)[0]


def test_the_hidden_loss_is_the_mean_over_the_tokens_there_are():
    student, teacher = toy(), toy()
    with torch.no_grad():
        for parameter in teacher.module.parameters():
            parameter.mul_(1.1)
    windows = student.family.windows(student, records(), length=128)
    outputs = []
    for model in (student, teacher):
        tokens = []
        blocks = [model.module.get_submodule(block.path) for block in model.anatomy.stack().blocks]
        hooks = [block.register_forward_hook(lambda _m, _i, out, to=tokens: to.append(first(out))) for block in blocks]
        for window in windows:
            model.family.forward(model, model.family.collate(model, [window]))
        for hook in hooks:
            hook.remove()
        outputs.append([torch.cat(tokens[number :: len(blocks)]) for number in range(len(blocks))])
    terms = [
        ((mine - theirs).pow(2).sum(-1) / theirs.pow(2).sum(-1)).mean() for mine, theirs in zip(*outputs, strict=True)
    ]
    losses = resolve_losses([{"use": "hidden"}])
    found = Objective(student, teacher, *losses)(student.family.collate(student, list(windows)))
    torch.testing.assert_close(found["hidden"], torch.stack(terms).mean(), rtol=1e-4, atol=1e-6)


def test_calibration_reads_no_padding():
    model = toy()
    windows = model.family.windows(model, records(), length=128)
    path = model.anatomy.stack().blocks[0].path

    def tokens(batches):
        seen = []
        watch(model, batches, {path: lambda read, *_: seen.append(read.flatten(0, -2))})
        return torch.cat(seen)

    together = tokens([model.family.collate(model, list(windows))])
    alone = tokens([model.family.collate(model, [window]) for window in windows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
