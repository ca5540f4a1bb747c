"""What text-to-image pipelines have in common: parts by name, latents, noising, and running part by part.

A pipeline's module holds its trained components as children: a denoiser `unet` or `transformer`, an autoencoder `vae` or
`decoder`, and text encoders. Its processor is a dict of the rest: tokenizers, the scheduler, image processors.

Legend: B batch, C channels, H rows, W columns, T tokens, L latent channels, h rows and w columns of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.errors import Refused, RequestError
from zoo.family.diffusion.noising import noising_of

DENOISERS, AUTOENCODERS = ("unet", "transformer"), ("decoder", "vae")
# share of captions that training replaces by the empty prompt, for guidance (Ho and Salimans, 2207.12598)
DROPPED = 0.1
ONLY = (
    "Only pipelines of a unet, an autoencoder and one text encoder are run part by part, as training, distilling and "
    "looking at activations do"
)
JITTER = 0.1  # noise on latents while the autoencoder trains, so that it takes what a denoiser leaves


# --- parts ----------------------------------------------------------------------------------------------------------


def part(module: nn.Module, names: Sequence[str]) -> Any:
    """Return the child of that role.

    Raises:
        RequestError: the pipeline has none of them.
    """
    children = dict(module.named_children())
    for name in names:
        if name in children:
            return children[name]
    raise RequestError(f"The pipeline has no {' or '.join(names)}, only {', '.join(children)}.")


def obstacle(module: nn.Module, scheduler: Any) -> str:
    """Say why a pipeline is not run part by part, as training does; "" where it is: a unet that reads one text encoder's
    states, and an autoencoder.

    Others (several text encoders, a transformer, added conditions) run through their own call alone.
    """
    names = [name for name, _ in module.named_children()]
    encoders = [name for name in names if name.startswith("text_encoder")]
    if encoders != ["text_encoder"] or "unet" not in names or not any(name in names for name in AUTOENCODERS):
        return f"{ONLY}; this one is of {', '.join(names)}."
    config, autoencoder = part(module, ("unet",)).config, part(module, AUTOENCODERS)
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(key):
            return f"{ONLY}; the unet of this one reads more than a text ({key} = {config.get(key)!r})."
    if not config.get("sample_size") or "block_out_channels" not in autoencoder.config:
        return f"{ONLY}; the configs of this one do not say how large its images are (sample_size, block_out_channels)."
    latent = autoencoder.config.get("latent_channels")
    if not hasattr(autoencoder, "encode") or getattr(autoencoder, "encoder", None) is None:
        return f"{ONLY}; the autoencoder of this one has no encoder."
    if not config.in_channels == config.out_channels == latent:
        return (
            f"{ONLY}; the unet of this one reads {config.in_channels} channels and makes {config.out_channels}, where its "
            f"latents have {latent}."
        )
    try:
        noising_of(scheduler)
    except Refused as error:
        return str(error)
    return ""


def require_parts(module: nn.Module, scheduler: Any) -> None:
    """Refuse a pipeline that is not run part by part, as training does.

    Raises:
        Refused: says what it is made of, or what of its scheduler is not known.
    """
    if reason := obstacle(module, scheduler):
        raise Refused(reason)


def scale(module: nn.Module) -> tuple[float, float]:
    """Scaling factor and shift of the latents: the denoiser works on (z - shift) * factor."""
    config = part(module, AUTOENCODERS).config
    return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the images a pipeline makes when it is not told."""
    config = part(module, AUTOENCODERS).config
    factor = 2 ** (len(config.block_out_channels) - 1)
    _, rows, columns = latent_shape(module)
    return config.out_channels, rows * factor, columns * factor


def without_size(module: nn.Module) -> bool:
    """Whether a pipeline has a unet whose config leaves open how large its images are."""
    return hasattr(module, "unet") and not part(module, ("unet",)).config.get("sample_size")


def latent_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the latent."""
    config = part(module, DENOISERS).config
    size = config.sample_size
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    return config.in_channels, rows, columns


# --- running part by part -------------------------------------------------------------------------------------------


def encode(module: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Make latents (B, L, h, w) as the denoiser takes them, from images of bytes."""
    autoencoder = part(module, AUTOENCODERS)
    dtype = next(p.dtype for p in autoencoder.parameters() if p.is_floating_point())
    encoded = autoencoder.encode(image_BCHW.to(dtype) / 127.5 - 1)
    latent_BLhw: torch.Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    factor, shift = scale(module)
    return (latent_BLhw - shift) * factor


def decode(module: nn.Module, latent_BLhw: torch.Tensor) -> torch.Tensor:
    """Make images (B, C, H, W) in -1..1 from latents."""
    factor, shift = scale(module)
    image_BCHW: torch.Tensor = part(module, AUTOENCODERS).decode(latent_BLhw / factor + shift).sample
    return image_BCHW


def denoise(module: nn.Module, noised_BLhw: torch.Tensor, step_B: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Run text encoder and denoiser: what the scheduler calls the model's output (B, L, h, w)."""
    states_BTD = module.text_encoder(ids_BT)[0]  # type: ignore[operator]
    out_BLhw: torch.Tensor = part(module, DENOISERS)(noised_BLhw, step_B, encoder_hidden_states=states_BTD).sample
    return out_BLhw


def noised(
    scheduler: Any, latent_BLhw: torch.Tensor, noise_BLhw: torch.Tensor, time_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise latents to a time in [0, 1]: the noised latents, the denoiser's time steps (B,), and its target.

    Raises:
        Refused: the scheduler's noising or prediction type is not known.
    """
    noising = noising_of(scheduler)
    level = noising.at(time_B)
    noisy = noising.noised(latent_BLhw, noise_BLhw, level)
    return noisy, level.step_B, noising.target(latent_BLhw, noise_BLhw, level)


def without_noise(scheduler: Any, noisy: torch.Tensor, out: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
    """Undo `noised` with the denoiser's output in place of the target: the latents it points to."""
    noising = noising_of(scheduler)
    return noising.latent(noisy, out, noising.at(time_B)).to(noisy.dtype)
