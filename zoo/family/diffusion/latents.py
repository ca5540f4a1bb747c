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

DENOISERS, AUTOENCODERS = ("unet", "transformer"), ("decoder", "vae")
# share of captions that training replaces by the empty prompt, for guidance (Ho and Salimans, 2207.12598)
DROPPED = 0.1
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


def separable(module: nn.Module) -> bool:
    """Whether a pipeline is run part by part here: a unet that reads one text encoder's states, and an autoencoder.

    Others (several text encoders, a transformer, added conditions) run through their own call alone.
    """
    names = [name for name, _ in module.named_children()]
    config = getattr(getattr(module, "unet", None), "config", {})
    plain = not config.get("addition_embed_type") and not config.get("class_embed_type")
    encoders = [name for name in names if name.startswith("text_encoder")]
    return encoders == ["text_encoder"] and "unet" in names and plain and any(name in names for name in AUTOENCODERS)


def require_separable(module: nn.Module) -> None:
    """Refuse a pipeline that is not run part by part, as training does.

    Raises:
        Refused: says what it is made of.
    """
    if not separable(module):
        raise Refused(
            "Only pipelines of a unet, an autoencoder and one text encoder are run part by part, as training, distilling "
            f"and looking at activations do; this one is of {', '.join(name for name, _ in module.named_children())}."
        )


def scale(module: nn.Module) -> tuple[float, float]:
    """Scaling factor and shift of the latents: the denoiser works on (z - shift) * factor."""
    config = part(module, AUTOENCODERS).config
    return float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the images a pipeline makes when it is not told."""
    autoencoder, denoiser = part(module, AUTOENCODERS), part(module, DENOISERS)
    side = denoiser.config.sample_size * 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return autoencoder.config.out_channels, side, side


def latent_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the latent."""
    config = part(module, DENOISERS).config
    return config.in_channels, config.sample_size, config.sample_size


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

    Flow matching (the default): x = (1 - t) z + t eps, target eps - z. With a variance-preserving scheduler (one that
    has `alphas_cumprod`): x = sqrt(a) z + sqrt(1 - a) eps, target eps or, where it predicts velocities, v.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        t = time_B[:, None, None, None]
        return (1 - t) * latent_BLhw + t * noise_BLhw, 1000 * time_B, noise_BLhw - latent_BLhw
    step_B = (time_B * (len(alphas) - 1)).round().long()
    a = alphas.to(latent_BLhw.device)[step_B][:, None, None, None].to(latent_BLhw.dtype)
    noisy = a.sqrt() * latent_BLhw + (1 - a).sqrt() * noise_BLhw
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, step_B, a.sqrt() * noise_BLhw - (1 - a).sqrt() * latent_BLhw
    return noisy, step_B, noise_BLhw


def without_noise(scheduler: Any, noisy: torch.Tensor, out: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
    """Undo `noised` with the denoiser's output in place of the target: the latents it points to."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return noisy - time_B[:, None, None, None] * out
    a = alphas.to(noisy.device)[(time_B * (len(alphas) - 1)).round().long()][:, None, None, None].to(noisy.dtype)
    v = scheduler.config.prediction_type == "v_prediction"
    latent_BLhw: torch.Tensor = (
        a.sqrt() * noisy - (1 - a).sqrt() * out if v else (noisy - (1 - a).sqrt() * out) / a.sqrt().clamp_min(1e-3)
    )
    return latent_BLhw
