"""What a denoiser is trained towards follows from the scheduler: prediction_type "sample" and "flow_prediction"."""

import sys
import warnings

warnings.simplefilter("ignore")
import diffusers as D
import torch

from zoo.family.diffusion.latents import noised

torch.manual_seed(0)
bad = []
latent, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0.2, 0.5, 0.9])
cases = {
    "DDPM epsilon": (D.DDPMScheduler(), "noise", 1000),
    "DDPM sample": (D.DDPMScheduler(prediction_type="sample"), "latent", 1000),
    "DDIM sample": (D.DDIMScheduler(prediction_type="sample"), "latent", 1000),
    "DPM-Solver flow_prediction": (
        D.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        "noise - latent",
        1000,
    ),
    "UniPC flow_prediction": (
        D.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        "noise - latent",
        1000,
    ),
}
for name, (scheduler, want, scale) in cases.items():
    try:
        noisy, step, target = noised(scheduler, latent, noise, t)
    except Exception as error:
        print("refused", name, str(error)[:80])
        continue
    got = next(
        (
            k
            for k, v in {"noise": noise, "latent": latent, "noise - latent": noise - latent}.items()
            if torch.allclose(v, target, atol=1e-4)
        ),
        "something else",
    )
    right = got == want and (scale is None or float(step.max()) < scale)
    bad += [] if right else [name]
    print(
        f"{'right' if right else 'WRONG'} {name}: trained towards {got!r} (should be {want!r}) at steps {[round(float(s)) for s in step]} (scheduler knows 0..{scale})"
    )
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
