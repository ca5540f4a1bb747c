"""GPTQ against rounding, its size, and a result that reloads to the last bit."""

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
from zoo_compress.methods.quantize.solvers.grid import Grid

import zoo_gptq.gptq

FEW = {"samples": 4, "length": 32}
TEXT = "def add(a, b):\n    return a + b\n\n\n" * 40


def context() -> Context:
    return Context(data={"calibration": Dataset("text", [Sample({"text": TEXT}, "text:1")])})


def test_a_quantizer_on_the_walk_is_short():
    assert len(inspect.getsource(zoo_gptq.gptq).splitlines()) <= 80


@pytest.mark.parametrize("seed", range(5))
def test_its_outputs_are_nearer_than_those_of_rounding(seed: int):
    draw, grid = torch.Generator().manual_seed(seed), Grid(4, 32, symmetric=False)
    weight_OI = torch.randn(48, 64, generator=draw, dtype=torch.float64)
    x_NI = torch.randn(512, 64, generator=draw, dtype=torch.float64) @ torch.randn(64, 64, generator=draw).double()
    chosen = zoo_gptq.gptq.gptq(weight_OI, x_NI.T @ x_NI, grid).weight()
    lost = [((weight_OI - other_OI) @ x_NI.T).norm() for other_OI in (chosen, grid.nearest(weight_OI.float()).weight())]
    assert lost[0] < 0.8 * lost[1]


def test_inputs_that_do_not_vary_together_are_rounded():
    weight_OI, grid = (
        torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).double(),
        Grid(4, 32, symmetric=False),
    )
    chosen = zoo_gptq.gptq.gptq(weight_OI, torch.diag(torch.arange(1.0, 65).double()), grid)
    assert torch.equal(chosen.codes.float(), grid.nearest(weight_OI.float()).codes)


def test_it_is_stored_in_four_bits_and_reloads_exactly(tmp_path: Path):
    model = zoo.load("tiny-code")
    before = model.bytes
    apply(model, "gptq.int4", FEW, context())
    assert model.bytes < before
    check_exact_reload([model], tmp_path)


def test_it_is_planned_exactly_and_refuses_what_is_packed():
    model = zoo.load("tiny-code")
    packed = check_estimate(model, "gptq.int4", FEW, context())
    apply(model, "gptq.int4", FEW, context())
    assert (packed.params, packed.bytes) == (model.params, model.bytes)
    assert "gptq.int4" in check_refuses(model, "gptq.int4", FEW, context())


def test_calibration_data_is_asked_for():
    with pytest.raises(zoo.DataError, match=r"gptq\.int4 needs calibration data"):
        apply(zoo.load("tiny-code"), "gptq.int4", FEW, Context())
