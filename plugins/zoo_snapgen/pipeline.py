"""The SnapGen pipeline: text to image by Euler steps along the flow, with classifier-free guidance.

    images = SnapGenPipeline.from_pretrained(folder)("a thin seven", num_inference_steps=16).images

`from_pretrained` of `DiffusionPipeline` finds it too, once this module is imported.

Legend: B batch, C latent channels, H rows, W columns, T tokens, D width of the text states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoo_snapgen.decoder import SnapGenDecoder
from zoo_snapgen.unet import SnapGenUNet


class SnapGenPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Text encoder, UNet, scheduler, decoder."""

    model_cpu_offload_seq = "text_encoder->unet->decoder"

    def __init__(
        self,
        unet: SnapGenUNet,
        decoder: SnapGenDecoder,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, decoder=decoder, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 ** (len(decoder.config.block_out_channels) - 1))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        num_inference_steps: int = 28,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Make one image for each prompt.

        Args:
            guidance_scale: 1 for none; the velocity is negative + scale * (prompt - negative).
            latents: the noise to start from (B, C, H, W); by default drawn from `generator`.
            output_type: "pil", "np", "pt", or "latent" for what the decoder would read.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        states_BTD = self.encode_prompt(prompts)
        if guidance_scale != 1:
            states_BTD = torch.cat((self.encode_prompt([negative_prompt] * len(prompts)), states_BTD))
        config = self.unet.config
        shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        x_BCHW = latents.to(self._execution_device, self.unet.dtype)
        # Explicit sigmas: the scheduler's own default wastes its last step on a sigma near 0.
        self.scheduler.set_timesteps(
            sigmas=torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist(), device=x_BCHW.device
        )
        for time in self.progress_bar(self.scheduler.timesteps):
            velocity = self._velocity(x_BCHW, time, states_BTD, guidance_scale)
            x_BCHW = self.scheduler.step(velocity, time, x_BCHW, return_dict=False)[0]
        decoder = self.decoder.config
        z_BCHW = x_BCHW / decoder.scaling_factor + decoder.shift_factor
        if output_type == "latent":
            images: Any = z_BCHW
        else:
            pixels = self.decoder.decode(z_BCHW, return_dict=False)[0].float()
            images = self.image_processor.postprocess(pixels, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states (B, T, D); prompts are cut at the tokenizer's length."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)["input_ids"]
        states_BTD: torch.Tensor = self.text_encoder(torch.tensor(ids, device=self._execution_device))[0]
        return states_BTD

    def _velocity(
        self, x_BCHW: torch.Tensor, time: torch.Tensor, states_BTD: torch.Tensor, guidance: float
    ) -> torch.Tensor:
        if guidance == 1:
            return self.unet(x_BCHW, time, states_BTD, return_dict=False)[0]  # type: ignore[no-any-return]
        both = self.unet(torch.cat((x_BCHW, x_BCHW)), time, states_BTD, return_dict=False)[0]
        without, with_text = both.chunk(2)
        guided: torch.Tensor = without + guidance * (with_text - without)
        return guided


if not hasattr(diffusers, "SnapGenPipeline"):  # where DiffusionPipeline.from_pretrained looks for a pipeline's name
    diffusers.SnapGenPipeline = SnapGenPipeline
