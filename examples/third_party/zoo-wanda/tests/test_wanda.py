"""Wanda against its formula, its size, and a result that reloads to the last bit."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import zoo
from zoo.compressor import Context
from zoo.data import Dataset, Sample
from zoo.testing import check_estimate, check_exact_reload, check_refuses
from zoo_compress import apply
from zoo_compress.calibrate.watch import CalibrationOptions, batches

import zoo_wanda.wanda

FEW = {"samples": 4, "length": 32}
TEXT = "def add(a, b):\n    return a + b\n\n\n" * 40


def context() -> Context:
    return Context(data={"calibration": Dataset("text", [Sample({"text": TEXT}, "text:1")])})


def test_a_compressor_on_the_walk_is_short():
    assert len(inspect.getsource(zoo_wanda.wanda).splitlines()) <= 45


def test_each_row_loses_what_counts_least_once_the_blocks_before_are_pruned(tmp_path: Path):
    model, original = zoo.load("tiny-code"), zoo.load("tiny-code")
    apply(model, "wanda.rows", {"sparsity": 0.25, **FEW}, context())
    path = model.anatomy.stack().blocks[-1].attention.q.path
    inputs = []
    hook = model.module.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches(model, CalibrationOptions(**FEW), context(), stage="test"):
        with torch.no_grad():
            model.family.forward(model, batch)
    hook.remove()
    norm_I = torch.cat([x.flatten(0, -2) for x in inputs]).double().norm(dim=0)
    before_OI, after_OI = (m.module.get_submodule(path).weight.detach() for m in (original, model))
    for before_I, after_I in zip(before_OI, after_OI, strict=True):
        score = (before_I.abs() * norm_I).tolist()
        least = sorted(range(len(score)), key=score.__getitem__)[: round(0.25 * len(score))]
        assert after_I.nonzero().flatten().tolist() == sorted(set(range(len(score))) - set(least))
    check_exact_reload([model], tmp_path)


def test_it_is_planned_exactly_and_refuses_what_is_packed():
    model = zoo.load("tiny-code")
    pruned = check_estimate(model, "wanda.rows", FEW, context())
    assert (pruned.params, pruned.bytes) == (model.params, model.bytes)
    apply(model, "quantize.int8", {}, Context())
    assert "Put wanda.rows before quantize.int8" in check_refuses(model, "wanda.rows", FEW, context())


def test_calibration_data_is_asked_for():
    with pytest.raises(zoo.DataError, match="wanda.rows needs calibration data"):
        apply(zoo.load("tiny-code"), "wanda.rows", FEW, Context())
