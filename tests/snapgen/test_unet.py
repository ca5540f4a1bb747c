"""The SnapGen UNet against arithmetic, formulas written out, and diffusers' own UNet of the same shape."""

from __future__ import annotations

import cmath
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo_snapgen.unet import Attention, ResnetBlock, SnapGenUNet, Transformer2D, TransformerBlock, rotary_angles, rotate


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def unused_norms(unet: nn.Module) -> int:
    """Entries of the norm that DreamLite keeps where it has no self-attention: gain and bias of each such block."""
    blocks = [part for part in unet.modules() if isinstance(part, TransformerBlock) and not hasattr(part, "attn1")]
    return sum(2 * block.norm2.weight.numel() for block in blocks)


# --- arithmetic (shared/facts/text-to-image.md, sections 4 and 13) ---------------------------------------------------


@pytest.mark.parametrize(("channels", "params"), [(256, 795_392), (896, 5_077_632)])
def test_residual_blocks_have_the_computed_size(channels: int, params: int):
    with torch.device("meta"):
        assert count(ResnetBlock(channels, channels, 1024, groups=32, eps=1e-5)) == params


def test_transformer_has_the_computed_size():
    with torch.device("meta"):
        made = Transformer2D(896, 14, 1, 4, context=2304, inner=3 * 896, groups=32, self_attention=True, theta=1e4)
    assert count(made) == 45_048_832


@pytest.mark.parametrize(("context", "params"), [(768, 371_570_064), (2304, 378_647_952)])
def test_default_config_has_the_published_size(context: int, params: int):
    """372M and 379M. The computed totals include DreamLite's norms where there is no self-attention: 11,264 entries."""
    with torch.device("meta"):
        unet = SnapGenUNet(cross_attention_dim=context)
    assert unused_norms(unet) == 2 * 256 * 2 + 2 * 512 * 10 == 11_264
    assert count(unet) == params - 11_264


@pytest.mark.parametrize(("context", "params"), [(768, 375_056_912), (2304, 382_134_800)])
def test_without_first_stage_residual_blocks_it_has_the_computed_size(context: int, params: int):
    with torch.device("meta"):
        unet = SnapGenUNet(cross_attention_dim=context, first_stage_resnets=0, num_mid_resnets=2)
    assert count(unet) == params - 11_264


def test_attention_layers_are_where_the_paper_has_them():
    with torch.device("meta"):
        blocks = [part for part in SnapGenUNet().modules() if isinstance(part, TransformerBlock)]
    assert len(blocks) == 36
    assert sum(hasattr(block, "attn1") for block in blocks) == 24
    assert {block.norm2.weight.numel() for block in blocks if hasattr(block, "attn1")} == {896}


def test_two_mid_residual_blocks_give_dreamlite_without_its_unused_norms():
    from diffusers import DreamLiteUNetModel

    shape: dict[str, Any] = {
        "sample_size": 128,
        "in_channels": 16,
        "out_channels": 16,
        "block_out_channels": (256, 512, 896),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 4),
        "attention_head_dim": (4, 8, 14),
        "cross_attention_dim": 2304,
        "ff_mult": 3,
    }
    with torch.device("meta"):
        stock, unet = DreamLiteUNetModel(**shape, use_linear_projection=True), SnapGenUNet(**shape, num_mid_resnets=2)
    assert count(stock) == 383_725_584
    assert count(unet) == count(stock) - unused_norms(unet)


# --- against diffusers ----------------------------------------------------------------------------------------------


def test_output_equals_dreamlite_with_the_same_weights():
    """Self-attention everywhere, where the two agree on purpose, and no rotary positions, which DreamLite lacks."""
    from diffusers import DreamLiteUNetModel

    shape: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 16, 32),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 2),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 24,
        "ff_mult": 3,
        "norm_num_groups": 4,
    }
    torch.manual_seed(0)
    stock = DreamLiteUNetModel(
        **shape,
        use_linear_projection=True,
        down_block_types=("DreamLiteCrossAttnDownBlock2D",) * 3,
        up_block_types=("DreamLiteCrossAttnUpBlock2D",) * 3,
    ).eval()
    unet = SnapGenUNet(
        **shape, num_mid_resnets=2, rope_theta=0.0, self_attention=(True,) * 3, up_attention=(True,) * 3
    ).eval()
    unet.load_state_dict(_renamed(stock.state_dict()))
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    with torch.no_grad():
        ours = unet(sample, torch.tensor([3.0, 700.0]), text).sample
        theirs = stock(sample, torch.tensor([3.0, 700.0]), encoder_hidden_states=text).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # sums in another order
    assert theirs.abs().mean() > 0.1


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GEGLU's one projection is value then gate; ours are two."""
    found = {}
    for name, tensor in weights.items():
        if ".ff.net.0.proj." in name:
            up, gate = tensor.chunk(2)
            found[name.replace("net.0.proj", "up_proj")] = up
            found[name.replace("net.0.proj", "gate_proj")] = gate
        else:
            found[name.replace(".ff.net.2.", ".ff.down_proj.")] = tensor
    return found


# --- against formulas -----------------------------------------------------------------------------------------------


def test_separable_convolutions_equal_dense_ones_of_rank_one():
    torch.manual_seed(0)
    block = ResnetBlock(6, 8, 12, groups=2, eps=1e-5)
    x, time = torch.randn(2, 6, 5, 5), torch.randn(2, 12)

    def dense(conv: Any, value: torch.Tensor) -> torch.Tensor:
        kernel = conv.pointwise.weight[:, :, 0, 0][:, :, None, None] * conv.depthwise.weight[None, :, 0]
        return F.conv2d(value, kernel, padding=1)

    def norm(layer: nn.GroupNorm, value: torch.Tensor) -> torch.Tensor:
        groups = value.unflatten(1, (2, -1))
        mean, var = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), keepdim=True, unbiased=False)
        plain = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        return plain * layer.weight[:, None, None] + layer.bias[:, None, None]

    def silu(value: torch.Tensor) -> torch.Tensor:
        return value / (1 + torch.exp(-value))

    hidden = dense(block.conv1, silu(norm(block.norm1, x)))
    assert hidden.shape[1] == 16  # expanded twofold, where the time is added
    hidden = hidden + (silu(time) @ block.time_emb_proj.weight.T + block.time_emb_proj.bias)[:, :, None, None]
    hidden = dense(block.conv2, silu(norm(block.norm2, hidden)))
    assert block.conv_shortcut is not None
    expected = hidden + F.conv2d(x, block.conv_shortcut.weight, block.conv_shortcut.bias)
    torch.testing.assert_close(block(x, time), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_multi_query_with_normed_queries_and_keys():
    torch.manual_seed(0)
    layer = Attention(12, 3, 1, context=7)
    for gain in (layer.norm_q.weight, layer.norm_k.weight):
        nn.init.uniform_(gain, 0.5, 2)
    x, text = torch.randn(1, 4, 12), torch.randn(1, 5, 7)

    def rms(vector: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return vector / (vector.square().mean() + 1e-5).sqrt() * gain

    heads = []
    keys, values = text[0] @ layer.to_k.weight.T, text[0] @ layer.to_v.weight.T  # one head, which all queries read
    for head in range(3):
        queries = x[0] @ layer.to_q.weight[4 * head : 4 * head + 4].T
        rows = []
        for q in queries:
            scores = torch.stack([rms(q, layer.norm_q.weight) @ rms(k, layer.norm_k.weight) / 4**0.5 for k in keys])
            rows.append((scores.exp() / scores.exp().sum()) @ values)
        heads.append(torch.stack(rows))
    expected = torch.cat(heads, dim=-1) @ layer.to_out[0].weight.T + layer.to_out[0].bias
    torch.testing.assert_close(layer(x, text, (2, 2))[0], expected, rtol=1e-4, atol=1e-5)


def test_rotary_positions_turn_pairs_by_row_and_by_column():
    x = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))  # 2 rows, 3 columns, heads of 8
    turned = rotate(x, rotary_angles(2, 3, 8, 100.0, x.device))
    for place in range(6):
        row, column = divmod(place, 3)
        for pair in range(4):
            speed = 100.0 ** -((pair % 2) / 2)
            angle = (row if pair < 2 else column) * speed
            before = complex(x[0, 0, place, pair], x[0, 0, place, pair + 4])
            after = complex(turned[0, 0, place, pair], turned[0, 0, place, pair + 4])
            assert after == pytest.approx(before * cmath.exp(1j * angle), abs=1e-5)


def test_rotary_scores_depend_on_the_offset_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 16, 8)
    angles = rotary_angles(4, 4, 8, 10000.0, q.device)
    scores = (rotate(q, angles) @ rotate(k, angles).transpose(-1, -2))[0, 0].reshape(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    torch.testing.assert_close(scores[3, 3, 1, 0], scores[2, 3, 0, 0])
    assert not torch.isclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


def test_a_fresh_unet_predicts_zero_and_cross_attention_has_no_positions():
    torch.manual_seed(0)
    unet = SnapGenUNet(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 1, 2),
        cross_attention_dim=6,
        norm_num_groups=2,
    )
    out = unet(torch.randn(1, 4, 8, 8), 500.0, torch.randn(1, 3, 6)).sample
    assert out.shape == (1, 4, 8, 8)
    assert torch.equal(out, unet.conv_out.bias[None, :, None, None].expand_as(out))
    layer = Attention(16, 2, 1, context=6, theta=1e4)
    x, text = torch.randn(1, 1, 16).expand(1, 4, 16), torch.randn(1, 3, 6)
    torch.testing.assert_close(layer(x, text, (2, 2))[:, 0], layer(x, text, (2, 2))[:, 3])
