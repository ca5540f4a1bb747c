"""A small pipeline directory for classes of denoisers of diffusers, as diffusers saves it.

A pipeline is more than its denoiser, and its parts must fit each other; what is written here are the smallest that do.
Every other class of denoiser is listed as not built.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from architectures import AIMED, NotBuilt
from snapgen.pipelines import stable_diffusion

WIDTH, LENGTH = 32, 12


@cache
def denoisers() -> tuple[str, ...]:
    """The classes of UNets and transformers that diffusers exports."""
    import diffusers

    names = []
    for package_name in ("diffusers.models.unets", "diffusers.models.transformers"):
        package = importlib.import_module(package_name)
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package_name}.{info.name}")
            names += [
                name
                for name, kind in vars(module).items()
                if inspect.isclass(kind)
                and kind.__module__ == module.__name__
                and _is_model(kind)
                and hasattr(diffusers, name)
            ]
    return tuple(names)


def _is_model(kind: type) -> bool:
    import diffusers

    return issubclass(kind, diffusers.ModelMixin)


def small_pipeline(name: str, folder: Path) -> tuple[str, Any, dict[str, dict[str, Any]]]:
    """A directory with a pipeline of this denoiser, no model of the library's own, and the options that differ.

    Raises:
        NotBuilt: none is written here, or diffusers does not build it.
    """
    if name not in PIPELINES:
        raise NotBuilt("no small pipeline of it is written in tests/sweep/pipelines_of.py")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            PIPELINES[name](folder)
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}"[:160]) from None
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    changes: dict[str, dict[str, Any]] = {use: {"target": part} for use in AIMED}
    changes["inherit"]["layers"] = "first:1"
    changes["prune.structured"] = {"ffn": 0.25, "heads": None, "target": part}
    return str(folder), None, changes


def _autoencoder(channels: int = 4, **changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(latent_channels=channels, block_out_channels=(8,), norm_num_groups=4, sample_size=8, **changes)


def _words() -> Any:
    from zoo_snapgen.data import WORDS
    from zoo_snapgen.text import word_tokenizer

    return word_tokenizer(WORDS, length=LENGTH)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()


def _clip() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, projection_dim=WIDTH, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


def _ddpm(folder: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


def _transformer_values() -> dict[str, Any]:
    return {"sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "in_channels": 4}


def _dit(folder: Path) -> None:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    denoiser = DiTTransformer2DModel(**_transformer_values(), out_channels=8, patch_size=2)
    DiTPipeline(denoiser, _autoencoder(), DDIMScheduler(), id2label={0: "tench"}).save_pretrained(folder)


def _pixart(folder: Path) -> None:
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    denoiser = PixArtTransformer2DModel(
        **_transformer_values(), out_channels=8, patch_size=2, caption_channels=WIDTH, cross_attention_dim=WIDTH
    )
    PixArtAlphaPipeline(_words(), _t5(), _autoencoder(), denoiser, DDIMScheduler()).save_pretrained(folder)


def _stable_diffusion_3(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    denoiser = SD3Transformer2DModel(
        **_transformer_values(),
        out_channels=4,
        patch_size=1,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )
    from transformers import T5Config, T5EncoderModel

    t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=2 * WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    StableDiffusion3Pipeline(
        transformer=denoiser,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(shift_factor=0.06),
        text_encoder=_clip(),
        text_encoder_2=_clip(),
        text_encoder_3=t5,
        tokenizer=_words(),
        tokenizer_2=_words(),
        tokenizer_3=_words(),
    ).save_pretrained(folder)


def _flux(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    denoiser = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(1, shift_factor=0.06),
        text_encoder=CLIPTextModel(_clip().config).eval(),
        tokenizer=_words(),
        text_encoder_2=_t5(),
        tokenizer_2=_words(),
        transformer=denoiser,
    ).save_pretrained(folder)


def _aura_flow(folder: Path) -> None:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    denoiser = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    text = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    AuraFlowPipeline(_words(), text, _autoencoder(), denoiser, FlowMatchEulerDiscreteScheduler()).save_pretrained(
        folder
    )


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "UNet2DConditionModel": stable_diffusion,
    "UNet2DModel": _ddpm,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _stable_diffusion_3,
    "FluxTransformer2DModel": _flux,
    "AuraFlowTransformer2DModel": _aura_flow,
}
