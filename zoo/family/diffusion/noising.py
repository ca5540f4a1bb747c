"""How a scheduler noises latents, x = a z + b eps, and what its denoiser predicts of them.

Legend: B batch, L latent channels, h rows and w columns of the latent; z latents, eps noise, a and b their factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from zoo.errors import Refused

# Flow matching whose time steps are the noise's share times `num_train_timesteps`. Other classes without
# `alphas_cumprod` (EDM, consistency, TrigFlow, discrete tokens, ...) noise in ways of their own.
FLOWS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
# what each kind of noising can be asked for: v is defined where a² + b² = 1, the flow where a + b = 1
ALPHAS_PREDICT = ("epsilon", "sample", "v_prediction")
FLOWS_PREDICT = ("epsilon", "sample", "flow_prediction")
SMALLEST = 1e-3  # what a factor that divides is taken for at least


@dataclass(frozen=True)
class Level:
    """The noise on each latent of a batch: the factors (B, 1, 1, 1) of latent and noise, and the denoiser's steps (B,)."""

    a: torch.Tensor
    b: torch.Tensor
    step_B: torch.Tensor


@dataclass(frozen=True)
class Noising:
    """The noising of one scheduler; without `alphas` (the cumulative ones of every step) it is flow matching."""

    predicts: str
    steps: int
    alphas: torch.Tensor | None = None

    def at(self, time_B: torch.Tensor) -> Level:
        """Return the noise at times in [0, 1], where 1 is all noise."""
        if self.alphas is None:
            b = _wide(time_B)
            return Level(1 - b, b, self.steps * time_B)
        step_B = (time_B * (self.steps - 1)).round().long()
        a2 = _wide(self.alphas.to(time_B.device)[step_B])
        return Level(a2.sqrt().float(), (1 - a2).sqrt().float(), step_B)

    def noised(self, latent_BLhw: torch.Tensor, noise_BLhw: torch.Tensor, level: Level) -> torch.Tensor:
        return (level.a * latent_BLhw + level.b * noise_BLhw).to(latent_BLhw.dtype)

    def target(self, latent_BLhw: torch.Tensor, noise_BLhw: torch.Tensor, level: Level) -> torch.Tensor:
        """Return what the denoiser should predict of latents and their noise."""
        if self.predicts == "epsilon":
            return noise_BLhw
        if self.predicts == "sample":
            return latent_BLhw
        if self.predicts == "v_prediction":  # Salimans and Ho, 2202.00512, appendix D
            return level.a * noise_BLhw - level.b * latent_BLhw
        return noise_BLhw - latent_BLhw

    def matching(self, level: Level) -> Level:
        """Return the level here that has as much noise to the latent as a level of another noising; the nearest there is."""
        if self.alphas is None:
            return self.at((level.b / (level.a + level.b)).flatten())
        alphas = self.alphas.to(level.a.device)
        share = level.a.square() / (level.a.square() + level.b.square())
        step_B = (share.flatten()[:, None] - alphas).abs().argmin(1)
        return self.at(step_B / (self.steps - 1))

    def noise(self, noisy_BLhw: torch.Tensor, out_BLhw: torch.Tensor, level: Level) -> torch.Tensor:
        """Return the noise that a prediction points to."""
        if self.predicts == "epsilon":
            return out_BLhw
        if self.predicts == "sample":
            return (noisy_BLhw - level.a * out_BLhw) / level.b.clamp_min(SMALLEST)
        if self.predicts == "v_prediction":
            return level.b * noisy_BLhw + level.a * out_BLhw
        return noisy_BLhw + level.a * out_BLhw

    def latent(self, noisy_BLhw: torch.Tensor, out_BLhw: torch.Tensor, level: Level) -> torch.Tensor:
        """Return the latents that a prediction points to."""
        if self.predicts == "epsilon":
            return (noisy_BLhw - level.b * out_BLhw) / level.a.clamp_min(SMALLEST)
        if self.predicts == "sample":
            return out_BLhw
        if self.predicts == "v_prediction":
            return level.a * noisy_BLhw - level.b * out_BLhw
        return noisy_BLhw - level.b * out_BLhw


def noising_of(scheduler: Any) -> Noising:
    """Read how a scheduler noises; flow matching where there is none.

    Raises:
        Refused: its noising, or what its denoiser predicts, is not among those that training knows.
    """
    if scheduler is None:
        return Noising("flow_prediction", 1000)
    config, name = scheduler.config, type(scheduler).__name__
    alphas = getattr(scheduler, "alphas_cumprod", None)
    shifted = [
        f"{key} = {config[key]!r}"
        for key, usual in (("invert_sigmas", False), ("timestep_type", "discrete"))
        if config.get(key, usual) != usual
    ]
    if shifted:
        raise Refused(
            f"The scheduler {name} has {shifted[0]}, a scale of time that training and distilling do not know."
        )
    if name in FLOWS or (alphas is not None and config.get("use_flow_sigmas")):
        noising = Noising(str(config.get("prediction_type", "flow_prediction")), int(config["num_train_timesteps"]))
    elif alphas is not None:
        noising = Noising(str(config.get("prediction_type", "epsilon")), len(alphas), alphas)
    else:
        raise Refused(
            f"The scheduler {name} noises latents in a way that training and distilling do not know; they know flow "
            "matching, and schedulers with alphas_cumprod such as DDPMScheduler."
        )
    known = FLOWS_PREDICT if noising.alphas is None else ALPHAS_PREDICT
    if noising.predicts not in known:
        raise Refused(
            f"The scheduler {name} has prediction_type = {noising.predicts!r}, which training and distilling do not know "
            f"with its {'flow' if noising.alphas is None else 'noise'}; they know {', '.join(known)}."
        )
    return noising


def mismatch(student: Noising, teacher: Noising) -> str:
    """Say why a teacher's predictions cannot be made into those of a student, at one level of noise; "" where they can."""
    pair = (student.alphas, teacher.alphas)
    if pair[0] is not None and pair[1] is not None:
        same = pair[0].shape == pair[1].shape and torch.allclose(pair[0].float(), pair[1].float(), rtol=1e-4, atol=1e-7)
        if not same:
            return "their schedulers' steps have different noise (alphas_cumprod)"
    vanishing = teacher.alphas is not None and float(teacher.alphas.min()) < SMALLEST**2
    if vanishing and teacher.predicts == "epsilon" and student.predicts != "epsilon":
        return "the teacher predicts noise, and its last step has nothing else"
    return ""


def _wide(value_B: torch.Tensor) -> torch.Tensor:
    return value_B[:, None, None, None]
