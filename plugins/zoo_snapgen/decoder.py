"""The small autoencoder: a decoder of separable convolutions without attention, and an encoder to train with.

Of SnapGen's (arXiv:2412.09619) digests state 1.38M parameters, separable convolutions and no attention; widths, depths
and norms were not found. With its default config this one has 1,380,067 parameters, in a layout of our own. Channels change only
in the convolutions that follow an upsampling, so residual blocks need no shortcut.

Legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class EncoderOutput(BaseOutput):  # type: ignore[misc]
    """The latents (B, C, H, W)."""

    latents: torch.Tensor


@dataclass
class DecoderOutput(BaseOutput):  # type: ignore[misc]
    """The image (B, C, H, W), -1 black to 1 white."""

    sample: torch.Tensor


class SeparableLayer(nn.Module):
    """Norm (or none), SiLU, a 3x3 convolution per channel and a 1x1 across channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels) if groups else None
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(x_BCHW) if self.norm is not None else x_BCHW
        out: torch.Tensor = self.pointwise(self.depthwise(F.silu(hidden)))
        return out


class DecoderBlock(nn.Module):
    """Two separable layers added to their input."""

    def __init__(self, channels: int, groups: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(SeparableLayer(channels, groups), SeparableLayer(channels, groups))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x_BCHW + self.layers(x_BCHW)
        return out


class Upsample(nn.Module):
    """Twice the resolution by repeating, then a convolution to the next width."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out


class SnapGenDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Latent to image, and image to latent where the config has an encoder.

    Latents the UNet works with are (z - shift_factor) * scaling_factor. An encoder trained here ends in a norm over the
    whole latent, so that its latents have variance 1 and both factors stay 1 and 0.

    Args:
        block_out_channels: width of each decoder stage, lowest resolution first; each after the first doubles it.
        layers_per_block: residual blocks of each stage.
        encoder_channels: widths of the encoder's strided convolutions, one for each halving; () for no encoder.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 16,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (256, 192, 96, 64),
        layers_per_block: tuple[int, ...] = (3, 3, 1, 1),
        norm_num_groups: int = 32,
        encoder_channels: tuple[int, ...] = (),
        scaling_factor: float = 1.5305,
        shift_factor: float = 0.0609,
    ) -> None:
        super().__init__()
        widths = block_out_channels
        parts: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
        for stage, (width, depth) in enumerate(zip(widths, layers_per_block, strict=True)):
            if stage:
                parts.append(Upsample(widths[stage - 1], width))
            parts += [DecoderBlock(width, norm_num_groups if stage == 0 else 0) for _ in range(depth)]
        self.decoder = nn.Sequential(*parts)
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        self.encoder = _encoder(out_channels, encoder_channels, latent_channels) if encoder_channels else None

    def encode(self, image_BCHW: torch.Tensor) -> EncoderOutput:
        """Make latents of variance 1 from images in -1..1."""
        if self.encoder is None:
            raise ValueError("this decoder was built without an encoder: set encoder_channels in its config")
        latent = self.encoder(image_BCHW)
        return EncoderOutput(latents=F.layer_norm(latent, latent.shape[1:]))

    def decode(self, z_BCHW: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Make images from latents as the decoder takes them, that is divided by scaling_factor, plus shift_factor."""
        out = self.conv_out(F.silu(self.norm_out(self.decoder(z_BCHW))))
        return DecoderOutput(sample=out) if return_dict else (out,)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Encode and decode."""
        out: torch.Tensor = self.decode(self.encode(image_BCHW).latents, return_dict=False)[0]
        return out


def _encoder(channels: int, widths: tuple[int, ...], latent_channels: int) -> nn.Sequential:
    """Strided 3x3 convolutions with SiLU, each halving the resolution, a residual block, and a convolution to the latent."""
    parts: list[nn.Module] = []
    for width in widths:
        parts += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.SiLU()]
        channels = width
    return nn.Sequential(*parts, DecoderBlock(channels), nn.Conv2d(channels, latent_channels, 3, padding=1))
