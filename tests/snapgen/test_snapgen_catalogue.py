"""SnapGen by name: sizes from arithmetic written out, what is said to be unknown and missing, twins, the packaged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_snapgen.unet import Attention, SeparableConv

import zoo
from zoo.artifact import store
from zoo.errors import RequestError, WeightsUnavailable
from zoo.loading import weights

NAMES = ("snapgen-1k", "snapgen-imagenet-256")
TIME = 1024  # the width of the time embedding


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolution(channels: int, out: int) -> int:
    return 9 * channels * out + out


def resnet(channels: int, out: int) -> int:
    """Separable convolutions to twice the width and back, two norms, the time, and a shortcut where the width changes."""
    norms = 2 * channels + 2 * 2 * out
    separable = 9 * channels + channels * 2 * out + 9 * 2 * out + 2 * out * out
    return norms + separable + (TIME + 1) * 2 * out + (channels * out + out if channels != out else 0)


def attention(width: int, context: int) -> int:
    """Norm, queries, one key and one value head of 64, their norms, the way out with a bias."""
    return 2 * width + width * width + 2 * 64 * context + 2 * 64 + width * width + width


def transformer(width: int, depth: int, context: int, *, own: bool) -> int:
    """Norm, the way in and out, and blocks of attention to itself (where it has it), to the text, and a gated FFN."""
    feed_forward = 2 * width + 2 * (width * 3 * width + 3 * width) + 3 * width * width + width
    block = (attention(width, width) if own else 0) + attention(width, context) + feed_forward
    return 2 * width + 2 * (width * width + width) + depth * block


def unet(context: int) -> int:
    """Three stages of 256, 512 and 896, from top to bottom and back (facts/text-to-image.md, 4.1)."""
    first, second, third = (
        transformer(width, depth, context, own=width == 896) for width, depth in ((256, 1), (512, 2), (896, 4))
    )
    outside = convolution(16, 256) + (256 + 1) * TIME + (TIME + 1) * TIME + 2 * 256 + convolution(256, 16)
    down = 2 * resnet(256, 256) + 2 * first + convolution(256, 256)
    down += resnet(256, 512) + resnet(512, 512) + 2 * second + convolution(512, 512)
    down += resnet(512, 896) + resnet(896, 896) + 2 * third
    middle = resnet(896, 896) + third
    up = 2 * resnet(896 + 896, 896) + resnet(896 + 512, 896) + 3 * third + convolution(896, 896)
    up += resnet(896 + 512, 512) + resnet(512 + 512, 512) + resnet(512 + 256, 512) + 3 * second + convolution(512, 512)
    up += resnet(512 + 256, 256) + 2 * resnet(256 + 256, 256)
    return outside + down + middle + up


@pytest.mark.parametrize(("name", "context", "size"), [(NAMES[0], 2304, 378_636_688), (NAMES[1], 768, 371_558_800)])
def test_the_unet_has_the_stated_size(name: str, context: int, size: int) -> None:
    """The paper states 379M and 372M."""
    model = zoo.load(name, device="meta")
    assert count(model.module.unet) == unet(context) == size  # type: ignore[arg-type]
    assert model.params == zoo.info(name).params
    assert round(size / 1e6) == {NAMES[0]: 379, NAMES[1]: 372}[name]


def test_the_1k_model_has_the_stated_decoder_and_latents() -> None:
    model = zoo.load("snapgen-1k", device="meta")
    decoder: Any = model.module.decoder
    assert count(decoder) == 1_380_067  # 1.38M
    assert model.params == 378_636_688 + 1_380_067
    assert 2 ** (len(decoder.config.block_out_channels) - 1) * model.module.unet.config.sample_size == 1024  # type: ignore[union-attr]
    assert [name for name, _ in zoo.load("snapgen-imagenet-256", device="meta").module.named_children()] == ["unet"]


@pytest.mark.parametrize("name", NAMES)
def test_the_unet_has_what_the_paper_asks_of_it(name: str) -> None:
    """Multi-query attention with norms of queries and keys, self-attention at the lowest resolution, separable convolutions."""
    unet: Any = zoo.load(name, device="meta").module.unet
    layers = {path: part for path, part in unet.named_modules() if isinstance(part, Attention)}
    assert all(part.to_k.out_features == part.head_dim == 64 for part in layers.values())
    assert all(part.norm_q.weight.numel() == part.norm_k.weight.numel() == 64 for part in layers.values())
    turning = {path: part for path, part in layers.items() if part.theta}
    assert len(layers) == 36 + 24 and len(turning) == 24
    assert all(path.endswith("attn1") and part.to_q.in_features == 896 for path, part in turning.items())
    convolutions = [part for part in unet.modules() if isinstance(part, SeparableConv)]
    assert len(convolutions) == 2 * (2 + 2 + 2 + 1 + 3 + 3 + 3)


@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_is_unknown_and_what_is_missing(name: str) -> None:
    spec = zoo.info(name)
    assert (spec.hub, spec.license) == ("", "unknown") and spec.unknown.startswith("the licence; ")
    assert "text encoder" in spec.missing and "tokenizer" in spec.missing and "scheduler" in spec.missing
    with pytest.raises(WeightsUnavailable) as caught:
        zoo.load(name)
    assert str(caught.value).startswith(f"{name} has no published weights. Pass weights='random'")


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_keeps_ratios_runs_and_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    whole, twin = zoo.info(name).config["components"], zoo.load(name, scale="tiny", weights="random")
    small = twin.spec.config["components"]
    assert small.keys() == whole.keys()
    changed = {key for key, value in whole["unet"].items() if small["unet"][key] != value}
    assert changed == {
        "sample_size",
        "block_out_channels",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "norm_num_groups",
    }
    assert small["unet"]["block_out_channels"] == [32, 64, 112]
    assert twin.params < 5_000_000
    again = zoo.load(twin.save(tmp_path / "twin"))
    inputs = (
        torch.randn(2, 16, 8, 8),
        torch.tensor([3.0, 700.0]),
        torch.randn(2, 5, small["unet"]["cross_attention_dim"]),
    )
    with torch.no_grad():
        for part in (twin, again):
            torch.nn.init.ones_(part.module.unet.conv_out.weight)  # type: ignore[union-attr, arg-type]
        outputs = [part.module.unet(*inputs).sample for part in (twin, again)]  # type: ignore[operator]
        if "decoder" in small:
            images = [part.module.decoder.decode(inputs[0]).sample for part in (twin, again)]  # type: ignore[union-attr, operator]
            assert torch.equal(*images) and images[0].shape == (2, 3, 64, 64)
    assert torch.equal(*outputs) and outputs[0].std() > 0


def test_what_is_not_all_of_snapgen_has_no_twin_and_draws_nothing() -> None:
    twin = zoo.load("snapgen-1k", scale="tiny", weights="random")
    for ask, sentence in (
        (
            lambda: zoo.load("tiny-t2i", scale="tiny", weights="random"),
            "tiny-t2i cannot be shrunk: its unet has no widths of which an eighth is a width.",
        ),
        (
            lambda: twin.generate("a seven"),
            "snapgen-1k-tiny lacks scheduler, text_encoder, tokenizer, which SnapGenPipeline needs; it has unet, decoder.",
        ),
    ):
        with pytest.raises(RequestError) as caught:
            ask()
        assert str(caught.value) == sentence


def test_the_packaged_model_computes_what_it_did() -> None:
    """Figures of the first packaged weights: whatever the classes learn, what was saved before means the same."""
    folder = weights.packaged_at(zoo.info("tiny-t2i"))
    assert folder is not None and store.verify(folder) == []
    model = zoo.load("tiny-t2i")
    with torch.no_grad():
        image = model.family.forward(model, model.family.example(model))
    assert image.shape == (2, 1, 32, 32)
    # float32 sums in another order on another processor
    assert image.flatten()[:4].tolist() == pytest.approx([-1.01874, -1.04005, -1.05011, -1.04684], abs=1e-3)
    assert image.flatten()[-4:].tolist() == pytest.approx([-1.0323, -1.03321, -1.06704, -1.03231], abs=1e-3)
    assert image.double().abs().mean().item() == pytest.approx(0.679804, abs=1e-4)
