"""SnapGen and Stable Diffusion pipelines, made tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo_snapgen.data import WORDS

from zoo import registry
from zoo.catalog import ModelSpec
from zoo.model.model import Model, build_random

UNET = {
    "_class_name": "SnapGenUNet",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 16, 32],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 2, 4],
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
DECODER = {
    "_class_name": "SnapGenDecoder",
    "latent_channels": 4,
    "out_channels": 1,
    "block_out_channels": [16, 8, 8],
    "layers_per_block": [1, 1, 1],
    "norm_num_groups": 4,
    "encoder_channels": [8, 8],
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "projection_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIG: dict[str, Any] = {
    "pipeline": "SnapGenPipeline",
    "words": list(WORDS),
    "components": {"unet": UNET, "decoder": DECODER, "text_encoder": TEXT},
}


def snapgen(*, seed: int = 0, **unet: Any) -> Model:
    """A SnapGen pipeline of random weights, none of them zero."""
    config = {**CONFIG, "components": {**CONFIG["components"], "unet": {**UNET, **unet}}}
    spec = ModelSpec("small", "snapgen", "text-to-image", "text-to-image", plugin="zoo_snapgen", config=config)
    return awake(build_random(registry.family("snapgen"), spec, seed=seed))


def awake(model: Model) -> Model:
    """Give what begins as zero small numbers, so that every weight matters to the output."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def stable_diffusion_xl(folder: Path) -> Path:
    """A pipeline with two text encoders and a UNet conditioned on more than their states."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    from zoo_snapgen.text import word_tokenizer

    text = CLIPTextConfig(**{k: v for k, v in TEXT.items() if k not in ("architectures", "model_type")})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=(2, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )
        vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=16)
        encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=word_tokenizer(WORDS, length=12),
        tokenizer_2=word_tokenizer(WORDS, length=12),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion pipeline directory as diffusers itself saves it, with weights of a few KB."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    from zoo_snapgen.text import word_tokenizer

    if folder.exists():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=16,
        )
        text = CLIPTextModel(
            CLIPTextConfig(**{k: v for k, v in TEXT.items() if k not in ("architectures", "model_type")})
        )
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=word_tokenizer(WORDS, length=12),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
