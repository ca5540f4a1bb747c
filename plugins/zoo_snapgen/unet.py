"""The SnapGen UNet: a small, fast text-to-image denoiser (Hu et al. 2024, arXiv:2412.09619).

Three stages. Every 3x3 convolution of a residual block is separable, with an expansion of 2 in the middle; self-attention
stands only in the lowest-resolution stage; cross-attention to the text stands from the first stage on; attention has one
key and value head (multi-query), RMSNorm on queries and keys, and 2-D rotary positions in self-attention; feed-forward
layers are gated, with an expansion of 3.

No code or weights of the authors were found. Widths, depths, the order inside a residual block and the expansions follow
what digests of the paper state; head counts, blocks of a stage and where norms stand follow diffusers'
`DreamLiteUNetModel` (Apache-2.0), whose config matches them item by item and whose module names are used here. Ours are:
one mid residual block and 2304-wide text, with which the stated totals come out, and the form of the rotary positions (two
axes, base 10,000, self-attention only). Two things differ from that class on purpose: where there is no self-attention,
no norm stands in its place and the residual stream passes untouched; and it has no rotary positions.

Every size is read from the modules, not from the config, so that the model runs on after a stage pruned, shared,
shortened or packed parts of it.

Legend: B batch, C channels, H rows, W columns, N = H*W positions, T text tokens, D width, A attention heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

EXPANSION = 2  # of the separable convolutions' middle


@dataclass
class UNetOutput(BaseOutput):  # type: ignore[misc]
    """The predicted velocity (B, C, H, W)."""

    sample: torch.Tensor


# --- residual blocks ------------------------------------------------------------------------------------------------


class SeparableConv(nn.Module):
    """A 3x3 convolution as one per channel and a 1x1 across channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.pointwise(self.depthwise(x_BCHW))
        return out


class ResnetBlock(nn.Module):
    """Depthwise, pointwise to twice the width, time, depthwise, pointwise back; added to the input."""

    def __init__(self, channels: int, out_channels: int, time_width: int, *, groups: int, eps: float) -> None:
        super().__init__()
        inner = EXPANSION * out_channels
        self.norm1 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv1 = SeparableConv(channels, inner)
        self.time_emb_proj = nn.Linear(time_width, inner)
        self.norm2 = nn.GroupNorm(groups, inner, eps=eps)
        self.conv2 = SeparableConv(inner, out_channels)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x_BCHW: torch.Tensor, time_BD: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_BCHW)))
        hidden = hidden + self.time_emb_proj(F.silu(time_BD))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        out: torch.Tensor = hidden + (self.conv_shortcut(x_BCHW) if self.conv_shortcut is not None else x_BCHW)
        return out


# --- transformer blocks ---------------------------------------------------------------------------------------------


def rotary_angles(rows: int, columns: int, head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """Angles (N, K/2) of 2-D axial rotary positions: half the pairs turn with the row, half with the column."""
    pairs = head_dim // 4
    speed = theta ** -(torch.arange(pairs, device=device, dtype=torch.float32) / pairs)
    row_HP = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * speed
    column_WP = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * speed
    grid = (row_HP[:, None].expand(-1, columns, -1), column_WP[None].expand(rows, -1, -1))
    return torch.cat(grid, dim=-1).flatten(0, 1)


def rotate(x_BANK: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn the pair (i, i + K/2) of every head by `angles` (N, K/2)."""
    first, second = x_BANK.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x_BANK.dtype), angles.sin().to(x_BANK.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Multi-query attention with RMSNorm on queries and keys; to itself, or to the text where one is given."""

    def __init__(self, width: int, heads: int, kv_heads: int, *, context: int = 0, theta: float = 0.0) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.theta = theta
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, kv_heads * self.head_dim, bias=False)
        self.to_v = nn.Linear(context or width, kv_heads * self.head_dim, bias=False)
        self.norm_q = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BND: torch.Tensor, text_BTD: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
        source = x_BND if text_BTD is None else text_BTD
        q_BANK = self.norm_q(self.to_q(x_BND).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        k_BATK = self.norm_k(self.to_k(source).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        v_BATK = self.to_v(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if text_BTD is None and self.theta:
            angles = rotary_angles(*grid, self.head_dim, self.theta, x_BND.device)
            q_BANK, k_BATK = rotate(q_BANK, angles), rotate(k_BATK, angles)
        repeats = q_BANK.shape[1] // k_BATK.shape[1]
        k_BATK, v_BATK = (t.repeat_interleave(repeats, dim=1) for t in (k_BATK, v_BATK))
        out_BANK = F.scaled_dot_product_attention(q_BANK, k_BATK, v_BATK)
        out: torch.Tensor = self.to_out[0](out_BANK.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Gated feed-forward: down(up(x) * gelu(gate(x))) (GEGLU, Shazeer 2020, 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.up_proj(x_BND) * F.gelu(self.gate_proj(x_BND)))
        return out


class TransformerBlock(nn.Module):
    """Self-attention where the stage has it, cross-attention to the text, feed-forward; each normed and added."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, *, context: int, inner: int, self_attention: bool, theta: float
    ) -> None:
        super().__init__()
        if self_attention:
            self.norm1 = nn.LayerNorm(width)
            self.attn1 = Attention(width, heads, kv_heads, theta=theta)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, kv_heads, context=context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, inner)

    def forward(self, x_BND: torch.Tensor, text_BTD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if hasattr(self, "attn1"):
            x_BND = x_BND + self.attn1(self.norm1(x_BND), None, grid)
        x_BND = x_BND + self.attn2(self.norm2(x_BND), text_BTD, grid)
        out: torch.Tensor = x_BND + self.ff(self.norm3(x_BND))
        return out


class Transformer2D(nn.Module):
    """Transformer blocks over the positions of a feature map; the whole is added to its input."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        depth: int,
        *,
        context: int,
        inner: int,
        groups: int,
        self_attention: bool,
        theta: float,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                width, heads, kv_heads, context=context, inner=inner, self_attention=self_attention, theta=theta
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, width)

    def forward(self, x_BCHW: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        grid = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        hidden_BND = self.proj_in(self.norm(x_BCHW).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            hidden_BND = block(hidden_BND, text_BTD, grid)
        out: torch.Tensor = x_BCHW + self.proj_out(hidden_BND).transpose(1, 2).unflatten(2, grid)
        return out


# --- stages ---------------------------------------------------------------------------------------------------------


class Resample(nn.Module):
    """Halve the resolution by a strided convolution, or double it by repeating and a convolution."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if self.up:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest")
        out: torch.Tensor = self.conv(x_BCHW)
        return out


class DownStage(nn.Module):
    """Residual blocks, each with its transformer, or transformers alone; then half the resolution."""

    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([resample] if resample else [])

    def forward(
        self, x: torch.Tensor, time_BD: torch.Tensor, text_BTD: torch.Tensor, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        for index in range(max(len(self.resnets), len(self.attentions))):
            if index < len(self.resnets):
                x = self.resnets[index](x, time_BD)
            if index < len(self.attentions):
                x = self.attentions[index](x, text_BTD)
            skips.append(x)
        for resample in self.downsamplers:
            x = resample(x)
            skips.append(x)
        return x


class MidStage(nn.Module):
    """A residual block, a transformer, and, where the config says two, another residual block."""

    def __init__(self, resnets: Sequence[nn.Module], attention: nn.Module) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: torch.Tensor, time_BD: torch.Tensor, text_BTD: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x, time_BD)
        x = self.attentions[0](x, text_BTD)
        for resnet in self.resnets[1:]:
            x = resnet(x, time_BD)
        return x


class UpStage(nn.Module):
    """Residual blocks that also read the skips of the way down, each with its transformer, then twice the resolution."""

    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([resample] if resample else [])

    def forward(
        self, x: torch.Tensor, time_BD: torch.Tensor, text_BTD: torch.Tensor, skips: list[torch.Tensor]
    ) -> torch.Tensor:
        for index, resnet in enumerate(self.resnets):
            x = resnet(torch.cat((x, skips.pop()), dim=1), time_BD)
            if index < len(self.attentions):
                x = self.attentions[index](x, text_BTD)
        for resample in self.upsamplers:
            x = resample(x)
        return x


@dataclass(frozen=True)
class Stages:
    """Makes the stages of a UNet, module by module in the order in which weights are drawn."""

    widths: Sequence[int]
    layers: int
    depths: Sequence[int]  # of the transformers
    heads: Sequence[int]
    kv_heads: int
    self_attention: Sequence[bool]
    context: int
    ff_mult: int
    theta: float
    time_width: int
    groups: int
    eps: float

    def resnet(self, channels: int, out: int) -> ResnetBlock:
        return ResnetBlock(channels, out, self.time_width, groups=self.groups, eps=self.eps)

    def transformer(self, stage: int) -> Transformer2D:
        width = self.widths[stage]
        return Transformer2D(
            width,
            self.heads[stage],
            self.kv_heads,
            self.depths[stage],
            context=self.context,
            inner=self.ff_mult * width,
            groups=self.groups,
            self_attention=self.self_attention[stage],
            theta=self.theta,
        )

    def down(self, first_resnets: int | None) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the channels of the skips that it leaves."""
        blocks = nn.ModuleList()
        channels = self.widths[0]
        skips = [channels]
        for stage, width in enumerate(self.widths):
            count = self.layers if stage or first_resnets is None else first_resnets
            resnets = [self.resnet(channels if i == 0 else width, width) for i in range(count)]
            resample = Resample(width, up=False) if stage < len(self.widths) - 1 else None
            blocks.append(DownStage(resnets, [self.transformer(stage) for _ in range(self.layers)], resample))
            skips += [width] * (self.layers + (resample is not None))
            channels = width
        return blocks, skips

    def mid(self, count: int) -> MidStage:
        """The lowest resolution, with so many residual blocks."""
        channels = self.widths[-1]
        return MidStage([self.resnet(channels, channels) for _ in range(count)], self.transformer(len(self.widths) - 1))

    def up(self, skips: list[int], attention: Sequence[bool]) -> nn.ModuleList:
        """The way up, which takes the skips; `attention` says which stages have transformers."""
        blocks = nn.ModuleList()
        channels = self.widths[-1]
        for index, stage in enumerate(reversed(range(len(self.widths)))):
            resnets = []
            for _ in range(self.layers + 1):
                resnets.append(self.resnet(channels + skips.pop(), self.widths[stage]))
                channels = self.widths[stage]
            attentions = [self.transformer(stage) for _ in resnets] if attention[index] else []
            blocks.append(UpStage(resnets, attentions, Resample(channels, up=True) if stage else None))
        return blocks


# --- the model ------------------------------------------------------------------------------------------------------


class SnapGenUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predict the flow's velocity from a noised latent, a time in [0, 1000] and text states.

    Args:
        sample_size: rows and columns of the latent the pipeline makes when it is not told.
        block_out_channels: width of each stage, highest resolution first.
        layers_per_block: residual blocks of a down stage; an up stage has one more.
        first_stage_resnets: residual blocks of the first down stage, where they are not `layers_per_block`; 0 is the
            literal reading of "text from the first stage": transformers in their place.
        num_mid_resnets: 1 or 2; with 1 the stated totals come out (372M with 768-wide text, 379M with 2304).
        attention_head_dim: the NUMBER of heads of each stage, as this family of diffusers configs spells it.
        self_attention: which stages have it.
        up_attention: which up stages have transformers, lowest resolution first.
        rope_theta: base of the rotary positions; 0 for none.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("ResnetBlock", "TransformerBlock")
    _repeated_blocks = ("TransformerBlock",)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        block_out_channels: tuple[int, ...] = (256, 512, 896),
        layers_per_block: int = 2,
        first_stage_resnets: int | None = None,
        num_mid_resnets: int = 1,
        transformer_layers_per_block: tuple[int, ...] = (1, 2, 4),
        attention_head_dim: tuple[int, ...] = (4, 8, 14),
        num_kv_heads: int = 1,
        self_attention: tuple[bool, ...] = (False, False, True),
        up_attention: tuple[bool, ...] = (True, True, False),
        cross_attention_dim: int = 2304,
        ff_mult: int = 3,
        rope_theta: float = 10000.0,
        time_embedding_dim: int | None = None,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        width = block_out_channels[0]
        time_width = time_embedding_dim or 4 * width
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, time_width)
        stages = Stages(
            widths=block_out_channels,
            layers=layers_per_block,
            depths=transformer_layers_per_block,
            heads=attention_head_dim,
            kv_heads=num_kv_heads,
            self_attention=self_attention,
            context=cross_attention_dim,
            ff_mult=ff_mult,
            theta=rope_theta,
            time_width=time_width,
            groups=norm_num_groups,
            eps=norm_eps,
        )
        self.down_blocks, skips = stages.down(first_stage_resnets)
        self.mid_block = stages.mid(num_mid_resnets)
        self.up_blocks = stages.up(skips, up_attention)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, eps=norm_eps)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        self.quiet()

    def quiet(self) -> None:
        """Start as the zero function, residual block by residual block: their last weights are zero."""
        for part in self.modules():
            if isinstance(part, ResnetBlock):
                nn.init.zeros_(part.conv2.pointwise.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[torch.Tensor]:
        """Predict the velocity.

        Args:
            sample: noised latent (B, C, H, W).
            timestep: (B,) or one number, 1000 times the share of noise.
            encoder_hidden_states: text states (B, T, D).
        """
        time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time_BD = self.time_embedding(self.time_proj(time).to(sample.dtype))
        x = self.conv_in(sample)
        skips = [x]
        for stage in self.down_blocks:
            x = stage(x, time_BD, encoder_hidden_states, skips)
        x = self.mid_block(x, time_BD, encoder_hidden_states)
        for stage in self.up_blocks:
            x = stage(x, time_BD, encoder_hidden_states, skips)
        out = self.conv_out(F.silu(self.conv_norm_out(x)))
        return UNetOutput(sample=out) if return_dict else (out,)
