"""H2OVL-Mississippi by name: the sizes of the published models, what is said to be missing, twins, the packaged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_vlm import config, picture
from zoo_h2ovl.model import H2OVL
from zoo_h2ovl.vocabulary import IMAGE_TOKEN, reading_tokenizer

import zoo
from zoo.artifact import store
from zoo.errors import RequestError, WeightsUnavailable
from zoo.loading import weights

NAMES = ("h2ovl-mississippi-800m", "h2ovl-mississippi-2b")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def tower() -> int:
    """InternViT-300M-448px: class token, 1025 positions, patches of 14 x 14, 24 blocks with layer scale, no final norm."""
    block = linear(1024, 3 * 1024) + linear(1024, 1024) + linear(1024, 4096) + linear(4096, 1024) + 4 * 1024 + 2 * 1024
    return 1024 + 1025 * 1024 + linear(3 * 14 * 14, 1024) + 24 * block


def decoder(width: int, *, layers: int, kv: int, inner: int) -> int:
    """32,010 tokens, an untied head; no biases."""
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner + 2 * width
    return 2 * 32_010 * width + layers * layer + width


@pytest.mark.parametrize(
    ("name", "width", "language", "published", "tensors"),
    [
        (NAMES[0], 1536, decoder(1536, layers=16, kv=8 * 96, inner=4096), 826_295_808, 493),
        (NAMES[1], 2560, decoder(2560, layers=24, kv=8 * 80, inner=6912), 2_152_317_440, 565),
    ],
)
def test_they_build_at_the_published_size(name: str, width: int, language: int, published: int, tensors: int) -> None:
    """In bfloat16 the totals are the 1.65 GB and 4.3 GB of the published files, whose tensors are as many."""
    model = zoo.load(name, device="meta")
    module, projector = model.module, 2 * 4096 + linear(4096, width) + linear(width, width)
    assert isinstance(module, H2OVL)
    assert count(module.vision) == tower() == 304_012_288
    assert count(module.projector) == projector
    assert count(module.language) == language
    assert model.params == zoo.info(name).params == tower() + projector + language == published
    assert len(module.state_dict()) == tensors
    assert model.family.tile_shape(model) == (448, 256, 32_002)


def test_the_2b_has_a_mistral_without_a_window_and_tiles_of_two_scales() -> None:
    configs = [zoo.load(name, device="meta").module.language.config for name in NAMES]
    assert [config.model_type for config in configs] == ["llama", "mistral"]
    assert configs[1].sliding_window is None
    assert [zoo.info(name).config["use_msac"] for name in NAMES] == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_is_missing_and_fetch_nothing_until_then(name: str) -> None:
    spec = zoo.info(name)
    assert spec.hub == f"h2oai/{name}" and spec.license == "Apache-2.0"
    assert spec.missing.startswith("reading its published weights") and "tokenizer" in spec.missing
    assert weights.describe(spec).startswith(f"hub: h2oai/{name}, not used yet")
    with pytest.raises(WeightsUnavailable) as caught:
        zoo.load(name)
    assert str(caught.value) == (
        f"{name}: zoo cannot use the weights of h2oai/{name} yet (`zoo info {name}` says what is missing): "
        "pass weights='random' for untrained ones, or weights=DIR for your own."
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_keeps_ratios_answers_and_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    whole, twin = zoo.info(name).config, zoo.load(name, scale="tiny", weights="random")
    small = twin.spec.config
    for key in ("use_msac", "use_thumbnail", "max_dynamic_patch", "downsample_ratio", "template"):
        assert small[key] == whole[key]
    mine, theirs = small["llm_config"], whole["llm_config"]
    assert mine["model_type"] == theirs["model_type"] and mine["rope_theta"] == theirs["rope_theta"]
    heads, groups = "num_attention_heads", "num_key_value_heads"
    assert mine[heads] // mine[groups] == theirs[heads] // theirs[groups]
    for key in ("vision_config", "llm_config"):
        ratios = [config[key]["intermediate_size"] / config[key]["hidden_size"] for config in (small, whole)]
        assert ratios[0] == pytest.approx(ratios[1], rel=0.05)
    assert twin.params < 300_000
    assert twin.family.tile_shape(twin) == (32, 4, IMAGE_TOKEN)
    assert reading_tokenizer().convert_tokens_to_ids("<IMG_CONTEXT>") == IMAGE_TOKEN
    asked = {"prompt": "What does it say?", "images": [picture(96, 64)], "max_new_tokens": 6}
    answer = twin.generate(**asked)
    again = zoo.load(twin.save(tmp_path / "twin"))
    batch = twin.family.example(twin)
    assert torch.equal(again.family.forward(again, batch), twin.family.forward(twin, batch))
    assert again.generate(**asked) == answer


def test_another_decoder_is_refused() -> None:
    language = {**config()["llm_config"], "model_type": "mistrl"}
    with pytest.raises(RequestError) as caught:
        H2OVL(config(llm_config=language))
    assert str(caught.value) == (
        "llm_config: model_type 'mistrl' is no decoder of H2OVL. Did you mean 'mistral'? Decoders: llama, mistral."
    )


def test_the_packaged_model_computes_what_it_did() -> None:
    """Figures of the first packaged weights: whatever the classes learn, what was saved before means the same."""
    folder = weights.packaged_at(zoo.info("tiny-vlm"))
    assert folder is not None and store.verify(folder) == []
    model = zoo.load("tiny-vlm")
    with torch.no_grad():
        logits = model.family.forward(model, model.family.example(model))
    assert logits.shape == (2, 16, 288)
    # float32 sums in another order on another processor
    assert logits.flatten()[:4].tolist() == pytest.approx([-19.45821, -19.66107, -19.56511, -19.33652], abs=1e-3)
    assert logits.flatten()[-4:].tolist() == pytest.approx([-18.73256, -0.59469, -18.88769, -19.09552], abs=1e-3)
    assert logits.double().abs().mean().item() == pytest.approx(13.872608, abs=1e-4)
