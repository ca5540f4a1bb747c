"""What a denoiser is trained towards, against every scheduler of diffusers.

The reference is the scheduler's own sampler: a denoiser that knows the latents z, and answers in the scheduler's way at the
scheduler's steps, is led to z by it. With another noise, another scale of time or another target it ends elsewhere.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import diffusers
import pytest
import torch

from zoo.errors import Refused
from zoo.family.diffusion import latents
from zoo.family.diffusion.noising import FLOWS, Level, Noising, noising_of

TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction", "trigflow", "sideways")
# whose samplers go from latents to noise, or take more than a prediction
NOT_TO_LATENTS = (
    "CogVideoXDPMScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "RePaintScheduler",
)
NEEDED: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 3},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
}


def schedulers() -> list[Any]:
    """Every scheduler class that can be used with the packages installed here."""
    classes = [getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Scheduler")]
    return [cls for cls in classes if isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)]


def variants(cls: Any) -> list[Any]:
    """The scheduler with every prediction type, with and without the sigmas of a flow, where it takes them."""
    parameters = inspect.signature(cls.__init__).parameters
    choices = [
        [{name: value} for value in values] if name in parameters else [{}]
        for name, values in {"prediction_type": TYPES, "use_flow_sigmas": (False, True)}.items()
    ]
    made = []
    for one, other in itertools.product(*choices):
        try:
            made.append(cls(**NEEDED.get(cls.__name__, {}), **one, **other))
        except (ValueError, NotImplementedError):  # what the scheduler refuses itself
            continue
    return made


def told(scheduler: Any) -> str:
    config = scheduler.config
    return f"{config.get('prediction_type')}, flow sigmas {config.get('use_flow_sigmas')}"


@pytest.mark.parametrize("cls", schedulers(), ids=lambda cls: cls.__name__)
def test_the_target_is_right_or_refused_in_one_sentence(cls: Any) -> None:
    z, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([0.2, 0.5, 0.9])
    for scheduler in variants(cls):
        try:
            noisy, step, target = latents.noised(scheduler, z, noise, time)
        except Refused as error:
            assert cls.__name__ in str(error)
            assert str(error).endswith(".") and "\n" not in str(error)
            continue
        predicts = scheduler.config.get("prediction_type") or ("flow_prediction" if is_flow(scheduler) else "epsilon")
        a, b = (factor[:, None, None, None].float() for factor in factors(scheduler, step))
        torch.testing.assert_close(noisy, a * z + b * noise, rtol=1e-4, atol=1e-5)
        expected = {
            "epsilon": noise,
            "sample": z,
            "v_prediction": a * noise - b * z,
            "flow_prediction": noise - z,
        }[predicts]
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
        assert float(step.min()) >= 0 and float(step.max()) < scheduler.config["num_train_timesteps"]
        torch.testing.assert_close(latents.without_noise(scheduler, noisy, target, time), z, rtol=1e-3, atol=1e-3)


def is_flow(scheduler: Any) -> bool:
    return bool(scheduler.config.get("use_flow_sigmas")) or not hasattr(scheduler, "alphas_cumprod")


def factors(scheduler: Any, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scheduler's time steps stand for, from its betas."""
    if is_flow(scheduler):
        share = step / scheduler.config["num_train_timesteps"]
        return 1 - share, share
    snr = scheduler.alphas_cumprod if "CogVideoX" in type(scheduler).__name__ else (1 - scheduler.betas).cumprod(0)
    return snr[step].sqrt(), (1 - snr[step]).sqrt()


def at_step(noising: Noising, step: float) -> Level:
    """The noise at a step of the scheduler's own, between two of training where it is none of them."""
    if noising.alphas is None:
        return noising.at(torch.tensor([step / noising.steps], dtype=torch.float64))
    lower = min(int(step), noising.steps - 2)
    a2 = torch.lerp(*noising.alphas[lower : lower + 2].double(), step - lower)[None, None, None, None]
    return Level(a2.sqrt(), (1 - a2).sqrt(), torch.tensor([step]))


def is_known(scheduler: Any) -> bool:
    try:
        noising_of(scheduler)
    except Refused:
        return False
    return True


SAMPLED = [
    scheduler
    for cls in schedulers()
    if cls.__name__ not in NOT_TO_LATENTS
    for scheduler in variants(cls)
    if is_known(scheduler)
]


@pytest.mark.quick
def test_most_schedulers_of_stable_diffusion_and_flow_matching_are_known() -> None:
    names = {type(scheduler).__name__ for scheduler in SAMPLED}
    assert len(names) >= 20
    assert {"DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", *FLOWS} <= names


@pytest.mark.parametrize("scheduler", SAMPLED, ids=lambda scheduler: f"{type(scheduler).__name__}-{told(scheduler)}")
def test_the_scheduler_leads_one_who_knows_the_latents_to_them(scheduler: Any) -> None:
    noising = noising_of(scheduler)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, 4, 4, generator=generator).clamp(-0.9, 0.9)  # some clip samples
    scheduler.set_timesteps(40)
    x = torch.randn(z.shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for step in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, step) if hasattr(scheduler, "scale_model_input") else x
        level = at_step(noising, float(step))
        noise = (seen - level.a * z) / level.b
        out = noising.target(z, noise, level).float()
        try:
            x = scheduler.step(out, step, x, return_dict=False)[0]
        except (ValueError, NotImplementedError):
            pytest.skip("the scheduler itself does not sample from this prediction")
    error = float((x - z).square().mean().sqrt())
    assert error < 0.12


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler noises latents in a way"),
        (diffusers.IPNDMScheduler(), "IPNDMScheduler noises latents in a way"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas = True, a scale of time"),
        (
            diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "timestep_type = 'continuous', a scale of time",
        ),
        (diffusers.DDPMScheduler(prediction_type="flow_prediction"), "prediction_type = 'flow_prediction'"),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="v_prediction", use_flow_sigmas=True),
            "prediction_type = 'v_prediction', which .* with its flow",
        ),
    ],
)
def test_what_is_not_known_is_refused(scheduler: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        noising_of(scheduler)
