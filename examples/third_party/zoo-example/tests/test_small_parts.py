"""The loss, the evaluator, the data source and the command, each against the same thing computed another way."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from zoo import registry
from zoo.cli import main
from zoo.data import open_data
from zoo.errors import RequestError
from zoo.testing import check_estimate

from zoo_example.data import Pydoc
from zoo_example.evaluators import share
from zoo_example.losses import ReverseKL
from zoo_example.spectrum import effective_rank, ranks

# --- reverse-kl -------------------------------------------------------------------------------------------------------


def test_reverse_kl_is_the_sum_written_out():
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 7, generator=draw), torch.randn(3, 7, generator=draw)
    found = ReverseKL()(student, teacher, None, ReverseKL.Options(temperature=2.0))
    for row in range(3):
        p, q = (torch.softmax(logits[row] / 2, -1) for logits in (student, teacher))
        assert float(found[row]) == pytest.approx(
            4 * sum(float(a * math.log(a / b)) for a, b in zip(p, q, strict=True)), rel=1e-5
        )


def test_reverse_kl_leaves_out_where_kl_covers():
    """Between one of the teacher's two peaks and a bit of everything, reverse KL takes the peak, forward KL the rest."""
    teacher = torch.tensor([[0.49, 0.02, 0.49]]).log()
    peak, level = torch.tensor([[0.96, 0.02, 0.02]]).log(), torch.tensor([[0.34, 0.32, 0.34]]).log()
    reverse, forward = ReverseKL(), registry.loss("kl")
    assert reverse(peak, teacher, None, reverse.Options()) < reverse(level, teacher, None, reverse.Options())
    assert forward(peak, teacher, None, forward.Options()) > forward(level, teacher, None, forward.Options())


# --- top-k-accuracy ---------------------------------------------------------------------------------------------------


def test_accuracy_is_that_of_the_sorted_logits():
    model, data = zoo.load("tiny-mingru"), open_data("pydoc:test[:2]")
    measure = registry.evaluator("top-k-accuracy").measure
    found = [measure(model, data, options={"k": k, "length": 64})[f"top_{k}_accuracy"] for k in (1, 5)]
    hits = torch.zeros(2)
    windows = model.family.windows(model, data, length=64)
    for window in windows:
        order = model.module(window["input_ids"][None]).logits[0].argsort(descending=True)
        right = order == window["labels"][:, None]
        hits += torch.tensor([right[:, :1].sum(), right[:, :5].sum()])
    assert [one["value"] for one in found] == pytest.approx((100 * hits / (64 * len(windows))).tolist())
    assert all(one["low"] < one["value"] < one["high"] and one["unit"] == "%" for one in found)


def test_the_interval_covers_as_often_as_it_says():
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        chances = 0.3 + 0.4 * torch.rand(60, 1, generator=draw)  # windows differ, so tokens are not independent
        found = share((torch.rand(60, 50, generator=draw) < chances).sum(1).double(), torch.full((60,), 50.0))
        covered += found["low"] < 50 < found["high"]
    assert 0.92 < covered / 400 < 0.98
    assert share(torch.tensor([3.0]), torch.tensor([4.0])) == {"value": 75.0, "n": 1}


def test_accuracy_refuses_what_predicts_no_label():
    with pytest.raises(
        RequestError,
        match="top-k-accuracy is for models that choose a next token or a class; tiny-t2i is text-to-image",
    ):
        registry.evaluator("top-k-accuracy").check(zoo.load("tiny-t2i", device="meta"), open_data("pydoc:test"))


# --- pydoc ------------------------------------------------------------------------------------------------------------


def test_no_topic_is_in_both_splits():
    train, test = ({sample.where for sample in Pydoc().records(split)} for split in Pydoc.splits)
    assert len(train) > 40 and len(test) > 4 and not train & test
    assert "topic if" in train and "topic with" in test
    assert "if_stmt" in next(sample.text for sample in open_data("pydoc") if sample.where == "topic if")


# --- spectrum ---------------------------------------------------------------------------------------------------------


def test_the_effective_rank_of_matrices_known_by_heart():
    assert effective_rank(3 * torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.zeros(2, 2)) == 0


def test_a_factored_layer_has_the_rank_of_its_factors():
    model = check_estimate(
        zoo.load("tiny-mingru"), "lowrank.svd", {"rank": 4, "whiten": False, "target": "language.ffn"}
    )
    found = {row["module"]: row for row in ranks(model)}
    assert len(found) == 18
    assert 1 < found["blocks.0.ffn.up_proj"]["effective_rank"] <= 4 < found["blocks.0.mixer.gate"]["effective_rank"]
    assert (found["blocks.0.ffn.up_proj"]["inputs"], found["blocks.0.ffn.up_proj"]["outputs"]) == (96, 128)


def test_a_packed_layer_has_nearly_the_rank_it_had():
    model = zoo.load("tiny-mingru")
    before, after = ranks(model), ranks(check_estimate(model, "palette.kmeans", {"bits": 8}))
    assert [row["effective_rank"] for row in after] == pytest.approx(
        [row["effective_rank"] for row in before], rel=0.01
    )


def test_the_command_prints_a_row_for_each_projection(capsys: pytest.CaptureFixture[str]):
    assert main(["spectrum", "tiny-mingru"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["module", "shape", "effective", "rank", "of", "full"]
    assert len(lines) == 19 and lines[1].split()[:4] == ["blocks.0.ffn.gate_proj", "128", "x", "96"]
