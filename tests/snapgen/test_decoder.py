"""The small autoencoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_snapgen.decoder import SnapGenDecoder

pytestmark = pytest.mark.quick


def small(**changes: object) -> SnapGenDecoder:
    torch.manual_seed(0)
    config = {
        "latent_channels": 4,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": (1, 1),
        "norm_num_groups": 2,
        "encoder_channels": (8,),
    }
    return SnapGenDecoder(**{**config, **changes})


def test_default_config_has_the_computed_size_and_separable_layers_alone():
    with torch.device("meta"):
        made = SnapGenDecoder()
    assert sum(p.numel() for p in made.parameters()) == 1_380_067
    convolutions = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    dense = [part for part in convolutions if part.kernel_size == (3, 3) and part.groups == 1]
    assert len(dense) == 5  # in, after each of three upsamplings, out
    assert not any("attention" in type(part).__name__.lower() for part in made.modules())


def test_latents_have_mean_zero_and_variance_one():
    latent = small().encode(torch.rand(3, 1, 16, 16) * 2 - 1).latents
    assert latent.shape == (3, 4, 8, 8)
    torch.testing.assert_close(latent.mean((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.var((1, 2, 3), unbiased=False), torch.ones(3), atol=1e-3, rtol=0)


def test_decoding_doubles_the_resolution_with_each_stage_but_the_first():
    assert small(block_out_channels=(8, 8, 8), layers_per_block=(1, 1, 1)).decode(
        torch.randn(2, 4, 4, 4)
    ).sample.shape == (2, 1, 16, 16)


def test_without_an_encoder_it_says_so():
    with pytest.raises(ValueError, match="built without an encoder: set encoder_channels"):
        small(encoder_channels=()).encode(torch.zeros(1, 1, 16, 16))
