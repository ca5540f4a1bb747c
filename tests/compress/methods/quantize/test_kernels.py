"""The table of kernels: which one multiplies what, on which processor, and how close it comes to the others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo_compress.methods.quantize.formats import kernels
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.kernels import PROCESSORS, TABLE, Shape, choose, counted, fitting, said

BF16 = pytest.mark.skipif(not kernels.has_bf16_products(), reason="a processor without products in bf16")


@pytest.fixture
def processor(monkeypatch):
    """A processor that has of PROCESSORS only what is named."""

    def only(*names):
        for name in PROCESSORS:
            monkeypatch.setitem(PROCESSORS, name, lambda name=name: name in ("", *names))
        fitting.cache_clear()

    yield only
    fitting.cache_clear()


def chosen(format, shape, rows, **options):
    return choose(format, Shape(*shape), torch.randn(rows, shape[1]), **{"exact": False, **options})


def test_every_format_ends_with_a_kernel_that_takes_everything():
    for format in {kernel.format for kernel in TABLE}:
        last = [kernel for kernel in TABLE if kernel.format == format][-1]
        assert (last.rounds, last.rows, last.processor, last.fits(Shape(1, 1, 1))) == (False, None, "", True)


@pytest.mark.quick
def test_the_kernel_follows_from_processor_shape_and_rows(processor):
    processor("bf16 products")
    assert [chosen("int8", (48, 64, 64), rows) for rows in (0, 1, 8, 9)] == [
        "widened",
        "int8pack",
        "int8pack",
        "widened to bf16",
    ]
    assert chosen("int8", (48, 60, 60), 1) == "widened to bf16" and chosen("int8", (48, 64, 32), 1) == "widened"
    assert chosen("int8", (48, 64, 64), 1, exact=True) == chosen("int8", (48, 64, 64), 9, exact=True) == "widened"
    assert chosen("int4", (48, 64, 32), 99) == "int4pack" and chosen("int4", (48, 64, 16), 1) == "widened"
    assert said("int8", Shape(48, 64, 64), "cpu") == "int8: int8pack up to 8 rows, then widened to bf16"
    processor()
    assert [chosen("int8", (48, 64, 64), rows) for rows in (16, 17)] == ["int8pack", "widened, rounding to bf16"]
    assert [chosen("int8", (48, 60, 60), rows) for rows in (1, 17)] == ["widened", "widened"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_needs_a_gradient_or_double_is_not_rounded(dtype):
    x = torch.randn(2, 64, dtype=dtype, requires_grad=dtype == torch.float32)
    assert choose("int8", Shape(48, 64, 64), x, exact=False) == choose("int4", Shape(48, 64, 64), x, exact=False)
    assert choose("int8", Shape(48, 64, 64), x, exact=False) == "widened"


def test_layers_are_counted_by_what_they_run_in(processor):
    processor("bf16 products")
    layers = nn.Sequential(*(Int8Linear.from_linear(nn.Linear(32, size)) for size in (8, 9)), nn.Linear(9, 9))
    assert counted(layers) == {"int8: int8pack up to 8 rows, then widened to bf16": 2}
    assert counted(layers, "cuda") == {"int8: widened": 2}


@pytest.mark.parametrize("names", [pytest.param(("bf16 products",), marks=BF16), ()], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("inputs", "rows", "share"), [(64, 256, 1e-4), (576, 1024, 1e-4), (8192, 256, 3e-4)])
def test_int8_gives_a_row_alone_what_it_gives_it_among_others(names, inputs, rows, share, processor):
    """Few rows and many take other kernels: their sums in fp32 differ by its rounding, which seldom is one of bf16.

    Of 576 inputs 7e-5 of the sums were rounded otherwise, of 8192 inputs 2e-4.
    """
    processor(*names)
    torch.manual_seed(0)
    layer = Int8Linear.from_linear(nn.Linear(inputs, 512, bias=False))
    layer.scale.fill_(1.0)  # so that outputs are the bf16 sums themselves
    x = torch.randn(rows, inputs)
    many, few = layer(x), torch.cat([layer(some) for some in x.split(4)])
    assert (many != few).float().mean() <= share
    step = 2.0 ** (many.abs().log2().floor() - 7)
    cancelled = F.linear(x.abs(), layer.weight_int8.float().abs()) * 2**-22
    assert ((many - few).abs() <= torch.maximum(step, cancelled)).all()
    assert torch.equal(few[:1], layer(x[:1]))
    if names:
        assert torch.equal(layer(x[:9]), many[:9])


@BF16
def test_int8_in_bf16_is_off_by_the_rounding_of_inputs_and_outputs_alone():
    layer = Int8Linear.from_linear(nn.Linear(576, 96))
    x = torch.randn(32, 576)
    want = F.linear(x, layer.dequantize(), layer.bias)
    bound = F.linear(x.abs(), layer.dequantize().abs()) * 2**-7 * (1 + 2**-8) + 1e-5
    assert ((layer(x) - want).abs() <= bound).all()
    assert not torch.equal(layer(x), want)
