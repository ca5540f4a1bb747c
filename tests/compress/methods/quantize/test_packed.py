"""Packed layers: equal to their formulas, and unchanged by a save and a load."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from zoo_compress.methods.quantize.formats import int8_layers, packed
from zoo_compress.methods.quantize.formats.convolutions import Int4Conv2d, Int8Conv2d
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear, pack_nibbles, unpack_nibbles
from zoo_compress.methods.quantize.formats.int8_layers import Int8Embedding, Int8Linear
from zoo_compress.methods.quantize.formats.kernels import has_gemv_4bit
from zoo_compress.methods.quantize.formats.lanes import from_lanes, to_lanes
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear

from zoo.tensors.alignment import BYTES

# O out, I in, T rows. The NF4 levels of QLoRA, appendix E (arXiv:2305.14314).
NF4_LEVELS = torch.tensor(
    [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0,
    ]
)


def make_linear(in_features=64, out_features=48, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias=bias)


def int4(in_features=64, out_features=48, *, group=32, zeros=True, bias=True, seed=0):
    """A layer of random codes, scales of both signs and, where asked, zeros."""
    draw = torch.Generator().manual_seed(seed)
    codes_OI = torch.randint(0, 16, (out_features, in_features), generator=draw, dtype=torch.uint8)
    groups = (out_features, in_features // group)
    scale_OG = (torch.randn(groups, generator=draw) * 0.02).bfloat16()
    zero_OG = torch.randint(0, 16, groups, generator=draw, dtype=torch.uint8) if zeros else None
    layer = Int4Linear.of(codes_OI, scale_OG, zero_OG)
    layer.bias = nn.Parameter(torch.randn(out_features, generator=draw)) if bias else None
    return layer


def int4_reference(layer):
    """(code - zero) * scale from the bytes of a layer, one number at a time."""
    rows, group = [], layer.group
    for row, scales, zeros in zip(layer.weight_int4.tolist(), layer.scale.tolist(), zeros_of(layer), strict=True):
        codes = [code for byte in row for code in (byte & 15, byte >> 4)]
        rows.append([(code - zeros[i // group]) * scales[i // group] for i, code in enumerate(codes)])
    return torch.tensor(rows)


def zeros_of(layer):
    if layer.zero is None:
        return [[8] * layer.scale.shape[1]] * layer.out_features
    return [[code for byte in row for code in (byte & 15, byte >> 4)] for row in layer.zero.tolist()]


def int8_reference(weight_OI):
    """absmax / 127 per row, one number at a time."""
    rows = []
    for row in weight_OI.tolist():
        largest = max(abs(value) for value in row)
        scale = largest / 127 if largest else 1.0
        rows.append([round(value / scale) * scale for value in row])
    return torch.tensor(rows)


def reload(module, empty, path):
    """Save, then load into an empty module that was built from shapes alone."""
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(load_file(path), assign=True)
    return empty


def test_int8_matches_the_formula():
    linear = make_linear(in_features=20, out_features=6)
    torch.testing.assert_close(
        Int8Linear.from_linear(linear).dequantize(), int8_reference(linear.weight), rtol=1e-6, atol=1e-7
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    in_features=st.integers(1, 70),
    out_features=st.integers(1, 40),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_int8_forward_matches_dequantized(rows, in_features, out_features, bias, seed):
    int8 = Int8Linear.from_linear(make_linear(in_features, out_features, bias=bias, seed=seed))
    x_TI = torch.randn(rows, in_features)
    want_TO = F.linear(x_TI, int8.dequantize(), int8.bias)
    # bf16 keeps 8 bits, so inputs and outputs are each off by up to 2**-8
    bound = F.linear(x_TI.abs(), int8.dequantize().abs()) * 2**-7 * (1 + 2**-8) + 1e-5
    assert ((int8(x_TI) - want_TO).abs() <= bound).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_int8_by_group_computes_with_the_scale_of_each_group(groups):
    codes_OI = torch.randint(-127, 128, (48, 64))
    scale_OG = torch.rand(48, groups) * 0.01
    layer = Int8Linear.of(codes_OI, scale_OG)
    layer.exact = True
    want_OI = codes_OI * scale_OG.repeat_interleave(64 // groups, 1)
    assert torch.equal(layer.dequantize(), want_OI)
    x_TI = torch.randn(17, 64)
    torch.testing.assert_close(layer(x_TI), F.linear(x_TI, want_OI), rtol=1e-5, atol=1e-5)
    empty = Int8Linear(64, 48, bias=False, groups=groups, device="meta")
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-30, 1e30), seed=st.integers(0, 99))
def test_int8_error_is_at_most_half_a_step(scale, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(13, 7)
    linear.weight.data.mul_(scale)
    int8 = Int8Linear.from_linear(linear)
    error_OI = (int8.dequantize() - linear.weight).abs()
    assert (error_OI <= int8.scale[:, None] * 0.5001).all()
    assert (int8.weight_int8.abs().amax(dim=1) == 127).all()


@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("kind", ["int8", "int8 by group", "int4", "int4 with zeros", "nf4"])
def test_an_exact_layer_rounds_no_product(kind, rows):
    layer = FULL[kind](make_linear())
    layer.exact = True
    x_TI = torch.randn(rows, 64)
    torch.testing.assert_close(layer(x_TI), F.linear(x_TI, layer.dequantize(), layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_widening_in_blocks_changes_nothing(monkeypatch, exact):
    int8 = Int8Linear.from_linear(make_linear())
    int8.exact = exact
    x_TI = torch.randn(33, 64)
    whole_TO = int8(x_TI)
    monkeypatch.setattr(int8_layers, "WIDEN_ELEMENTS", 64 * 7)  # 7 rows at a time, 48 is not a multiple
    torch.testing.assert_close(int8(x_TI), whole_TO, rtol=1e-5, atol=1e-5)


def int8_by_group():
    draw = torch.Generator().manual_seed(0)
    codes_OI = torch.randint(-127, 128, (48, 64), generator=draw)
    layer = Int8Linear.of(codes_OI, torch.rand(48, 2, generator=draw) * 0.01)
    layer.bias = nn.Parameter(torch.randn(48, generator=draw))
    return layer


def fixed_int4(linear):
    return int4(linear.in_features, linear.out_features)


@pytest.mark.parametrize("build", [Int8Linear.from_linear, NF4Linear.from_linear, fixed_int4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (5, 7, 64), (2, 1, 3, 64), (0, 64)])
def test_output_has_the_shape_and_dtype_of_the_input(build, dtype, shape):
    layer = build(make_linear())
    x = torch.randn(shape).to(dtype)
    y = layer(x)
    assert y.shape == (*shape[:-1], 48)
    assert y.dtype == dtype
    # bf16 arithmetic at worst: 8 bits of mantissa over a sum of 64 terms of order one.
    torch.testing.assert_close(y.float(), F.linear(x.float(), layer.dequantize(), layer.bias), rtol=0.02, atol=0.03)


def test_decode_kernel_takes_views_at_any_address():
    int8 = Int8Linear.from_linear(make_linear())
    x_TI = torch.randn(2, 65, dtype=torch.bfloat16)
    torch.testing.assert_close(int8(x_TI[:, 1:]), int8(x_TI[:, 1:].clone()), rtol=0, atol=0)
    shifted = x_TI.flatten()[1:65].view(1, 64)
    torch.testing.assert_close(int8(shifted), int8(shifted.clone()), rtol=0, atol=0)
    want = int8(x_TI[:, 1:])
    int8.weight_int8 = torch.cat([torch.zeros(1, dtype=torch.int8), int8.weight_int8.flatten()])[1:].view(48, 64)
    torch.testing.assert_close(int8(x_TI[:, 1:]), want, rtol=0, atol=0)


def test_gradient_reaches_the_input():
    int8 = Int8Linear.from_linear(make_linear())
    x_TI = torch.randn(2, 64, requires_grad=True)
    int8(x_TI).sum().backward()
    torch.testing.assert_close(x_TI.grad, int8.dequantize().sum(0).expand(2, 64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [Int8Linear.from_linear, NF4Linear.from_linear])
def test_zero_rows_stay_zero(build):
    linear = make_linear(bias=False)
    linear.weight.data[3] = 0
    layer = build(linear)
    assert layer(torch.randn(1, 64))[0, 3] == 0
    assert layer(torch.randn(40, 64))[:, 3].eq(0).all()
    assert layer.dequantize()[3].eq(0).all()
    if isinstance(layer, Int8Linear):
        assert layer.scale[3] == 1


@pytest.mark.parametrize("build", [Int8Linear.from_linear, NF4Linear.from_linear])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_name_the_row(build, value):
    linear = make_linear()
    linear.weight.data[5, 2] = value
    linear.weight.data[7, 1] = value
    with pytest.raises(ValueError, match=r"row 5 of the weight has 1 non-finite values.*2 of 48 rows"):
        build(linear)


def test_non_finite_embedding_names_the_row():
    embedding = nn.Embedding(6, 4)
    embedding.weight.data[2] = float("nan")
    with pytest.raises(ValueError, match="row 2 of the weight has 4 non-finite"):
        Int8Embedding.from_embedding(embedding)


def test_other_layers_are_refused_by_name():
    with pytest.raises(ValueError, match="cannot quantise a Conv2d"):
        Int8Linear.from_linear(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="cannot quantise a ReLU"):
        Int8Linear.from_linear(nn.ReLU())


@pytest.mark.parametrize("build", [Int8Linear.from_linear, NF4Linear.from_linear])
def test_conv1d_equals_its_linear(build):
    linear = make_linear()
    conv = Conv1D(48, 64)
    conv.weight.data = linear.weight.data.t().contiguous()
    conv.bias.data = linear.bias.data
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(build(conv)(x), build(linear)(x), rtol=0, atol=0)


EMPTY = {
    "int8": lambda: Int8Linear(64, 48, bias=True, device="meta"),
    "int8 by group": lambda: Int8Linear(64, 48, bias=True, groups=2, device="meta"),
    "int4": lambda: Int4Linear(64, 48, bias=True, group=64, device="meta"),
    "int4 with zeros": lambda: Int4Linear(64, 48, bias=True, group=32, zeros=True, device="meta"),
    "nf4": lambda: NF4Linear(64, 48, bias=True, device="meta"),
    "nf4 nested": lambda: NF4Linear(64, 48, bias=True, blocksize=128, nested=True, device="meta"),
}
FULL = {
    "int8": Int8Linear.from_linear,
    "int8 by group": lambda linear: int8_by_group(),
    "int4": lambda linear: int4(group=64, zeros=False),
    "int4 with zeros": fixed_int4,
    "nf4": NF4Linear.from_linear,
    "nf4 nested": lambda linear: NF4Linear.from_linear(linear, blocksize=128, nested=True),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_reload_is_bit_identical(kind, tmp_path):
    layer = FULL[kind](make_linear())
    again = reload(layer, EMPTY[kind](), tmp_path / "model.safetensors")
    for name, tensor in layer.state_dict().items():
        other = again.state_dict()[name]
        assert type(other) is torch.Tensor
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    for rows in (1, 3, 16, 17, 64):
        x_TI = torch.randn(rows, 64)
        assert torch.equal(layer(x_TI), again(x_TI))
        assert torch.equal(layer(x_TI.bfloat16()), again(x_TI.bfloat16()))


def test_fresh_process_gives_the_same_bits(tmp_path):
    layers = {kind: FULL[kind](make_linear()) for kind in EMPTY}
    x = {"one": torch.randn(1, 64), "many": torch.randn(64, 64)}
    save_file(x, tmp_path / "x.safetensors")
    for kind, layer in layers.items():
        save_file(layer.state_dict(), tmp_path / f"{kind}.safetensors")
    script = f"""
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.methods.quantize.formats.nf4_layers import NF4Linear
torch.set_num_threads({torch.get_num_threads()})
folder = Path({str(tmp_path)!r})
empty = {{
    "int8": Int8Linear(64, 48, bias=True, device="meta"),
    "int8 by group": Int8Linear(64, 48, bias=True, groups=2, device="meta"),
    "int4": Int4Linear(64, 48, bias=True, group=64, device="meta"),
    "int4 with zeros": Int4Linear(64, 48, bias=True, group=32, zeros=True, device="meta"),
    "nf4": NF4Linear(64, 48, bias=True, device="meta"),
    "nf4 nested": NF4Linear(64, 48, bias=True, blocksize=128, nested=True, device="meta"),
}}
x, out = load_file(folder / "x.safetensors"), {{}}
for kind, layer in empty.items():
    layer.load_state_dict(load_file(folder / f"{{kind}}.safetensors"), assign=True)
    for name in x:
        out[f"{{kind}} {{name}}"] = layer(x[name]).detach()
save_file(out, folder / "y.safetensors")
"""
    root = Path(packed.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
    fresh = load_file(tmp_path / "y.safetensors")
    for kind, layer in layers.items():
        for name in x:
            assert torch.equal(fresh[f"{kind} {name}"], layer(x[name])), (kind, name)


@pytest.mark.parametrize("kind", EMPTY)
def test_scales_survive_half_precision(kind):
    layer = FULL[kind](make_linear())
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items() if name != "bias"}
    layer.bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    for name, tensor in before.items():
        assert torch.equal(layer.state_dict()[name], tensor)
    assert EMPTY[kind]().half().state_dict()["absmax" if "nf4" in kind else "scale"].dtype != torch.float16


def test_loading_aligns_the_codes(tmp_path):
    layer = Int8Linear.from_linear(make_linear())
    again = reload(layer, Int8Linear(64, 48, bias=True, device="meta"), tmp_path / "model.safetensors")
    assert again.weight_int8.data_ptr() % BYTES == 0


def test_no_floating_copy_of_the_weight_is_kept():
    layer = Int8Linear.from_linear(make_linear(bias=False))
    layer(torch.randn(1, 64))
    layer(torch.randn(64, 64))
    assert sum(tensor.nbytes for tensor in layer.state_dict().values()) == 48 * 64 + 48 * 4
    assert not any(isinstance(value, torch.Tensor) for value in vars(layer).values())
    nf4 = NF4Linear.from_linear(make_linear(bias=False))
    assert sum(tensor.nbytes for tensor in nf4.state_dict().values()) == 48 * 64 // 2 + 48 * 64 // 64 * 4


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 4}, {"dilation": 2, "bias": False}])
def test_a_convolution_computes_with_its_rounded_weight(options):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 12, 3, **options), torch.randn(2, 8, 9, 9)
    packed = Int8Conv2d.like(conv, empty=False)
    packed.bias = conv.bias
    conv.weight.data = int8_reference(conv.weight.flatten(1)).view_as(conv.weight)
    torch.testing.assert_close(packed(x), conv(x), rtol=1e-6, atol=1e-6)
    assert packed.half().scale.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 4}, {"bias": False}])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_convolution_computes_with_its_4_bit_codes(options, zeros):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(32, 12, 3, **options), torch.randn(2, 32, 9, 9)
    inputs = conv.weight[0].numel()
    linear = int4(inputs, 12, group=inputs // 3, zeros=zeros)
    packed = Int4Conv2d.of(conv, linear.codes(), linear.scale, linear.zeros() if zeros else None)
    packed.bias = conv.bias
    conv.weight.data = linear.dequantize().view_as(conv.weight)
    assert torch.equal(packed(x), conv(x))
    assert packed.half().scale.dtype == torch.bfloat16
    empty = Int4Conv2d(conv, 3, zeros)
    shapes = [{n: (tuple(b.shape), b.dtype) for n, b in one.named_buffers()} for one in (empty, packed)]
    assert shapes[0] == shapes[1] and empty.scale.is_meta


def test_an_8_bit_convolution_takes_scales_of_groups():
    conv, x = nn.Conv2d(8, 12, 3), torch.randn(2, 8, 9, 9)
    codes_OI = torch.randint(-127, 128, (12, 72))
    packed = Int8Conv2d.of(conv, codes_OI, torch.rand(12, 3))
    conv.weight.data = (codes_OI.view(12, 3, 24) * packed.scale[..., None]).view_as(conv.weight)
    packed.bias = conv.bias
    torch.testing.assert_close(packed(x), conv(x))
    assert Int8Conv2d(conv, 3).scale.shape == packed.scale.shape


def test_an_empty_convolution_has_the_sizes_of_the_packed_one():
    conv = nn.Conv2d(8, 12, 3, device="meta")
    empty = Int8Conv2d.like(conv, empty=True)
    full = Int8Conv2d.like(nn.Conv2d(8, 12, 3), empty=False)
    shapes = [{n: (tuple(b.shape), b.dtype) for n, b in one.named_buffers()} for one in (empty, full)]
    assert shapes[0] == shapes[1] and empty.scale.is_meta


def test_a_convolution_padded_otherwise_than_with_zeros_is_refused():
    with pytest.raises(ValueError, match="padded with 'reflect': only zeros are supported"):
        Int8Conv2d.like(nn.Conv2d(2, 2, 3, padding_mode="reflect"), empty=False)


def test_bits_are_declared():
    kinds = (Int8Linear, Int8Conv2d, Int8Embedding, NF4Linear, Int4Linear, Int4Conv2d)
    assert [kind.zoo_bits for kind in kinds] == [8, 8, 8, 4, 4, 4]


def test_embedding_gathers_scaled_rows():
    embedding = nn.Embedding(11, 8)
    int8 = Int8Embedding.from_embedding(embedding)
    ids = torch.tensor([[0, 3], [10, 3]])
    torch.testing.assert_close(int8(ids), int8_reference(embedding.weight)[ids], rtol=1e-6, atol=1e-7)
    assert int8(ids).dtype == torch.float32
    assert Int8Embedding.from_embedding(embedding.bfloat16())(ids).dtype == torch.bfloat16
    assert int8.bfloat16()(ids).dtype == torch.bfloat16


def test_tied_head_shares_the_buffers(tmp_path):
    torch.manual_seed(0)
    embedding = Int8Embedding.from_embedding(nn.Embedding(40, 32))
    head = embedding.tied_head()
    assert head.weight_int8 is embedding.weight_int8
    assert head.scale is embedding.scale
    x = torch.randn(2, 1, 32)
    torch.testing.assert_close(head(x), F.linear(x, embedding.dequantize()), rtol=0.02, atol=0.03)

    again = reload(embedding, Int8Embedding(40, 32, device="meta"), tmp_path / "model.safetensors")
    other = again.tied_head()
    ids = torch.arange(40)
    assert torch.equal(again(ids), embedding(ids))
    assert torch.equal(other(x), head(x))

    pair = copy.deepcopy(nn.ModuleDict({"embedding": again, "head": other}))
    assert pair["head"].weight_int8 is pair["embedding"].weight_int8


def test_nf4_matches_the_levels():
    linear = make_linear(bias=False)
    nf4 = NF4Linear.from_linear(linear)
    blocks = linear.weight.detach().reshape(-1, 64)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / absmax)[..., None].sub(NF4_LEVELS).abs().argmin(dim=-1)
    want_OI = (NF4_LEVELS[nearest] * absmax).reshape(48, 64)
    torch.testing.assert_close(nf4.dequantize(), want_OI, rtol=1e-5, atol=1e-6)
    x = torch.randn(3, 64)
    torch.testing.assert_close(nf4(x), F.linear(x, want_OI), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 20),
    half=st.integers(1, 60),
    out_features=st.integers(1, 40),
    nested=st.booleans(),
    blocksize=st.sampled_from([64, 128]),
)
def test_nf4_shapes_follow_from_the_sizes(rows, half, out_features, nested, blocksize):
    linear = make_linear(2 * half, out_features)
    nf4 = NF4Linear.from_linear(linear, blocksize=blocksize, nested=nested)
    empty = NF4Linear(2 * half, out_features, bias=True, blocksize=blocksize, nested=nested, device="meta")
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in nf4.state_dict().items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in empty.state_dict().items()}
    x_TI = torch.randn(rows, 2 * half)
    nf4.exact = True
    torch.testing.assert_close(nf4(x_TI), F.linear(x_TI, nf4.dequantize(), nf4.bias), rtol=1e-4, atol=1e-4)


def test_nf4_refuses_sizes_it_cannot_pack():
    with pytest.raises(ValueError, match="in_features must be even, got 7"):
        NF4Linear(7, 4, bias=False)
    with pytest.raises(ValueError, match="blocksize must be a power of two"):
        NF4Linear(64, 4, bias=False, blocksize=100)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (128, 96)])
def test_nf4_codes_come_back_from_the_order_of_the_kernel(inputs, outputs):
    codes = torch.randint(0, 256, (outputs * inputs // 2, 1), dtype=torch.uint8)
    assert torch.equal(from_lanes(to_lanes(codes, outputs)), codes)


@pytest.mark.skipif(not has_gemv_4bit(), reason="a processor without bitsandbytes' kernel")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("blocksize", [64, 128, 256])
def test_nf4_runs_in_the_kernel_in_place_of_the_stored_codes(blocksize, nested):
    layer = NF4Linear.from_linear(make_linear(512, 96), blocksize=blocksize, nested=nested).eval()
    want = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x_TI = torch.randn(33, 512)
    close = F.linear(x_TI, layer.dequantize(), layer.bias)
    with torch.inference_mode():
        y_TO = layer(x_TI)
    # bf16 keeps 8 bits of inputs, scales and outputs
    assert ((y_TO - close).abs() <= F.linear(x_TI.abs(), layer.dequantize().abs()) * 2**-6).all()
    assert not torch.equal(y_TO, close)
    for rows in (1, 2, 16, 17):
        assert torch.equal(layer(x_TI[:rows].detach()), y_TO[:rows]), rows
    assert layer._buffers["weight_nf4"] is None and layer._lanes[0].nbytes == 512 * 96 // 2
    twin = copy.deepcopy(layer)
    after = layer.state_dict()
    assert list(after) == list(want) and all(torch.equal(after[name], want[name]) for name in want)
    assert layer._lanes is None and torch.equal(layer.weight_nf4, want["weight_nf4"])
    assert torch.equal(twin(x_TI), y_TO) and torch.equal(twin.weight_nf4, want["weight_nf4"])
    assert not layer.weight_nf4.is_inference()
    other = NF4Linear.from_linear(make_linear(512, 96, seed=1), blocksize=blocksize, nested=nested).eval()
    twin(x_TI), twin.load_state_dict(other.state_dict())
    assert torch.equal(twin(x_TI), other(x_TI))
    twin.weight_nf4 = want["weight_nf4"]
    assert torch.equal(twin.weight_nf4, want["weight_nf4"]) and not torch.equal(twin(x_TI), other(x_TI))


@pytest.mark.skipif(not has_gemv_4bit(), reason="a processor without bitsandbytes' kernel")
def test_nf4_is_widened_in_training_and_for_a_gradient():
    layer = NF4Linear.from_linear(make_linear(64, 32))
    x_TI = torch.randn(3, 64, requires_grad=True)
    want = F.linear(x_TI, layer.dequantize(), layer.bias)
    assert torch.equal(layer(x_TI.detach()), want)
    layer.eval()
    rounded = layer(x_TI.detach())
    assert torch.equal(layer(x_TI), want) and not torch.equal(rounded, want)
    assert torch.equal(layer(x_TI.detach()), rounded)


# --- int4 -----------------------------------------------------------------------------------------------------------

# (in, out, group): what the kernel takes as it is, a row whose one scale it takes in pieces, outputs that are no multiple of
# 16, and what is widened at each call
INT4_SHAPES = [(256, 32, 128), (576, 32, 576), (64, 10, 32), (40, 12, 40), (30, 7, 10)]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape", INT4_SHAPES, ids=str)
def test_int4_widens_to_its_formula_and_computes_with_it(shape, zeros):
    inputs, outputs, group = shape
    layer = int4(inputs, outputs, group=group, zeros=zeros)
    assert torch.equal(layer.dequantize(), int4_reference(layer))
    x_TI = torch.randn(5, inputs)
    want_TO = F.linear(x_TI, layer.dequantize(), layer.bias)
    # bf16 keeps 8 bits of inputs and outputs; a zero in bf16 is at most 1/64 of a step beside the exact one
    size_TO = F.linear(x_TI.abs(), layer.dequantize().abs()) * 2**-8
    step_TO = F.linear(x_TI.abs(), layer.scale.float().abs().repeat_interleave(group, 1)) / 64
    assert ((layer(x_TI) - want_TO).abs() <= size_TO + step_TO * zeros + want_TO.abs() * 2**-8 + 1e-5).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("shape", INT4_SHAPES[:3], ids=str)
def test_int4_gives_a_row_the_same_bits_alone_and_among_others(shape, zeros):
    layer = int4(shape[0], shape[1], group=shape[2], zeros=zeros)
    x_TI = torch.randn(97, shape[0])
    whole = layer(x_TI)
    for rows in (1, 2, 4, 5, 17, 64):
        assert torch.equal(layer(x_TI[:rows]), whole[:rows]), rows
        assert torch.equal(layer(x_TI[-rows:]), whole[-rows:]), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [10, 48])  # 10 are padded for the kernel
def test_int4_gives_the_same_bits_wherever_its_rows_lie(dtype, outputs):
    layer = int4(64, outputs)
    x_TI = torch.randn(6, 64, dtype=dtype)
    want_TO = layer(x_TI)
    beside = torch.cat((torch.zeros(1, dtype=dtype), x_TI.flatten()))[1:].view(6, 64)  # begins off 4 bytes
    for rows in (beside, x_TI.t().contiguous().t(), torch.stack((x_TI, x_TI), -1)[..., 0], x_TI.view(2, 3, 64)):
        y = layer(rows)
        assert y.dtype == dtype and y.is_contiguous() and torch.equal(y.view(6, outputs), want_TO)
    assert layer(x_TI[:0]).shape == (0, outputs)


def test_int4_keeps_the_layout_of_its_kernel_out_of_what_is_saved_and_copied():
    layer = int4()
    names = set(layer.state_dict())
    layer(torch.randn(1, 64))
    assert layer._kernel is not None and set(layer.state_dict()) == names == {"weight_int4", "scale", "zero", "bias"}
    assert copy.deepcopy(layer)._kernel is None
    stored = sum(tensor.nbytes for name, tensor in layer.state_dict().items() if name != "bias")
    assert stored == 48 * 64 // 2 + 48 * 2 * 2 + 48


@pytest.mark.parametrize("assign", [False, True])
def test_int4_computes_with_the_codes_that_were_loaded_last(assign):
    layer, other = int4(seed=0), int4(seed=1)
    x_TI = torch.randn(3, 64)
    before = layer(x_TI)
    layer.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(layer(x_TI), other(x_TI)) and not torch.equal(layer(x_TI), before)


def test_int4_gradient_reaches_the_input():
    layer = int4()
    x_TI = torch.randn(2, 64, requires_grad=True)
    layer(x_TI).sum().backward()
    torch.testing.assert_close(x_TI.grad, layer.dequantize().sum(0).expand(2, 64), rtol=1e-4, atol=1e-5)


@given(count=st.integers(1, 9), rows=st.integers(1, 4))
def test_nibbles_come_back(count, rows):
    codes = torch.randint(0, 16, (rows, count), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes), count), codes)
    assert pack_nibbles(torch.tensor([[1, 2]])).tolist() == [[0x21]]


def test_int4_refuses_sizes_it_cannot_pack():
    with pytest.raises(ValueError, match="in_features must be even, got 7"):
        Int4Linear(7, 4, bias=False, group=7)
    with pytest.raises(ValueError, match="group must divide in_features 96, got 64"):
        Int4Linear(96, 4, bias=False, group=64)
