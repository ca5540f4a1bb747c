"""Text-to-image pipelines: noised latents, seeded images, contact sheets; mechanics in `zoo.family.diffusion.latents`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import Family
from zoo.family.diffusion.options import TextToImageOptions
from zoo.family.diffusion.task import TextToImage
from zoo.family.options import GenerateOptions
from zoo.family.task import Task
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.anatomy.parts import Anatomy
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class TextToImageFamily(Family):
    """What text-to-image pipelines share: noised latents, seeded images, contact sheets; mechanics in `zoo.family.diffusion.latents`.

    The module holds a pipeline's trained components as children (`unet`, `vae` or `decoder`, `text_encoder`, ...); the
    processor is a dict of the others (`tokenizer`, `scheduler`, ...). Image i of seed s is the first image of seed s + i,
    and images are made one at a time, so an image depends on its own seed alone.

    Legend: B batch, C channels, H rows, W columns, T tokens, L latent channels, h rows and w columns of the latent.
    """

    modality: ClassVar[str] = "text-to-image"
    tasks: ClassVar[tuple[str, ...]] = ("text-to-image",)
    kinds: ClassVar[tuple[str, ...]] = ("velocity", "pixel")
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "velocity"}, {"use": "reconstruction"})
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "timestep-aware"},)
    evaluation: ClassVar[tuple[str, str]] = ("prompt-agreement", "digits-captions:test")
    Options: ClassVar[type[GenerateOptions] | None] = TextToImageOptions
    makes: ClassVar[str] = TextToImageOptions.makes
    library: ClassVar[str] = "diffusers"

    def task(self, name: str) -> Task:
        return TextToImage()

    @abstractmethod
    def pipeline(self, model: Model) -> Any:
        """Put module and processor together to the pipeline object of the ecosystem's library, without copying."""

    def anatomy(self, module: nn.Module) -> Anatomy:
        from zoo.family.diffusion.components import pipeline_anatomy

        return pipeline_anatomy(module)

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        from zoo.family.diffusion.latents import image_shape, latent_shape, obstacle

        if obstacle(model.module, self.scheduler(model)):
            return {"seed": torch.arange(seed, seed + batch)}
        generator = torch.Generator().manual_seed(seed)
        config: Any = model.module.get_submodule("text_encoder").config
        tokens = min(size, config.max_position_embeddings)
        drawn = {
            "image": torch.randint(0, 256, (batch, *image_shape(model.module)), generator=generator, dtype=torch.uint8),
            "input_ids": torch.randint(0, config.vocab_size, (batch, tokens), generator=generator),
            "noise": torch.randn(batch, *latent_shape(model.module), generator=generator),
            "time": torch.rand(batch, generator=generator),
        }
        return {name: tensor.to(model.device) for name, tensor in drawn.items()}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Encode, noise, denoise in one step, decode: images (B, C, H, W) in -1..1, by way of every component.

        A pipeline that is not run part by part makes small images through its own call, in one step, without a gradient.
        """
        from zoo.family.diffusion import latents

        if "seed" in batch:
            return self._whole(model, batch)
        latent_BLhw = latents.encode(model.module, batch["image"])
        noise, time_B, scheduler = (
            batch["noise"].to(latent_BLhw),
            batch["time"].to(latent_BLhw),
            self.scheduler(model),
        )
        noisy, step_B, _ = latents.noised(scheduler, latent_BLhw, noise, time_B)
        out = latents.denoise(model.module, noisy, step_B, batch["input_ids"])
        return latents.decode(model.module, latents.without_noise(scheduler, noisy, out, time_B))

    def _whole(self, model: Model, batch: Batch) -> torch.Tensor:
        """Make an image of 8 by 8 latent positions for each seed: (B, C, H, W) in 0..1."""
        import torch

        pipeline = self.pipeline(model)
        side = 8 * pipeline.vae_scale_factor
        generators = [torch.Generator().manual_seed(int(seed)) for seed in batch["seed"]]
        images: torch.Tensor = _images_of(
            model,
            pipeline,
            prompt=["a"] * len(generators),
            height=side,
            width=side,
            num_inference_steps=1,
            generator=generators,
            output_type="pt",
        )
        return images

    def default_parts(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make the processor of a model whose config alone determines it; None where it does not."""
        return None

    def parts(self, model: Model) -> dict[str, Any]:
        """Return the processor, made from the config where the model came without one."""
        from zoo.family.diffusion.captions import limit_prompts

        if model.processor is None:
            model.processor = self.default_parts(model.spec.config)
        limit_prompts(model.processor or {}, model.module)
        return model.processor or {}

    def scheduler(self, model: Model) -> Any:
        """Return the scheduler, by which latents are noised; None, for flow matching, where the model came without one."""
        return self.parts(model).get("scheduler")

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Read every record's image (C, H, W), in bytes, and caption (T,); `length` means nothing here."""
        from zoo.family.diffusion.captions import CaptionedImages, prompt_ids
        from zoo.family.diffusion.latents import image_shape

        self.check_data(model, data, length=length)
        ids_NT = prompt_ids(self.parts(model)["tokenizer"], [sample.text for sample in data])
        return CaptionedImages(data, ids_NT, image_shape(model.module))

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        from zoo.family.diffusion import captions, latents

        latents.require_parts(model.module, self.scheduler(model))
        captions.require_captions(data)

    def draw(self, model: Model, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
        """Add noise (B, L, h, w) and logit-normal times (B,) (SD3, 2403.03206, section 3.1); drop a tenth of the captions."""
        import torch

        from zoo.family.diffusion.captions import prompt_ids
        from zoo.family.diffusion.latents import DROPPED, latent_shape

        ids_BT, empty_1T = batch["input_ids"], prompt_ids(self.parts(model)["tokenizer"], [""])
        shape = latent_shape(model.module)
        chances_B = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        times_B = torch.cat([torch.randn(1, generator=generator) for generator in generators])
        return batch | {
            "input_ids": torch.where((chances_B < DROPPED)[:, None], empty_1T, ids_BT),
            "noise": torch.stack([torch.randn(shape, generator=generator) for generator in generators]),
            "time": torch.sigmoid(times_B),
        }

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return one row an image: "velocity" (what the denoiser predicts) and "pixel" (the decoded image).

        The latents that the denoiser learns are not differentiated; those that are decoded are, moved by a little noise.
        """
        import torch

        from zoo.family.diffusion import latents

        module, rows = model.module, dict[str, Rows]()
        each_B = torch.arange(len(batch["image"]), device=batch["image"].device)
        if "velocity" in kinds:
            with torch.no_grad():
                latent_BLhw = latents.encode(module, batch["image"])
            noisy, step_B, target = latents.noised(
                self.scheduler(model), latent_BLhw, batch["noise"].to(latent_BLhw), batch["time"]
            )
            out = latents.denoise(module, noisy, step_B, batch["input_ids"])
            rows["velocity"] = Rows(out.flatten(1), _unchanged, each_B, target.flatten(1), batch["time"])
        if "pixel" in kinds:
            latent_BLhw = latents.encode(module, batch["image"])
            image = latents.decode(module, latent_BLhw + latents.JITTER * batch["noise"])
            rows["pixel"] = Rows(image.flatten(1), _unchanged, each_B, batch["image"].flatten(1) / 127.5 - 1)
        return rows

    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's predictions cannot be made into the student's: other latents, other tokens, other noise."""
        from zoo.family.diffusion import autoencoders, latents
        from zoo.family.diffusion.captions import differing_prompt
        from zoo.family.diffusion.noising import mismatch, noising_of

        if not isinstance(teacher.family, TextToImageFamily):
            return f"distill compares images: the teacher {teacher.spec.name} is {teacher.spec.modality}."
        schedulers = [model.family.scheduler(model) for model in (student, teacher)]  # type: ignore[attr-defined]
        for model, scheduler in zip((student, teacher), schedulers, strict=True):
            if reason := latents.obstacle(model.module, scheduler):
                return (
                    f"{model.spec.name} cannot be distilled with {student.spec.name}: {reason}"
                    if model is teacher
                    else reason
                )
        mine, theirs = (latents.latent_shape(model.module) for model in (student, teacher))
        if mine != theirs:
            return (
                f"distill compares velocities of one latent: that of {student.spec.name} has shape {mine}, the teacher's "
                f"({teacher.spec.name}) {theirs}. Choose a teacher with the same autoencoder."
            )
        if reason := autoencoders.difference(student, teacher):
            return (
                f"distill compares predictions of one latent, and the autoencoders of {student.spec.name} and of the "
                f"teacher {teacher.spec.name} differ: {reason}. Choose a teacher with the same autoencoder."
            )
        if reason := differing_prompt(self.parts(student), teacher.family.parts(teacher)):
            return (
                f"distill gives one prompt's tokens to both models, and {student.spec.name} and the teacher "
                f"{teacher.spec.name} read {reason} differently. Choose a teacher with the same tokenizer."
            )
        if reason := mismatch(*map(noising_of, schedulers)):
            return (
                f"distill compares predictions at one level of noise, which {student.spec.name} and the teacher "
                f"{teacher.spec.name} cannot both be asked at: {reason}."
            )
        return ""

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        """Move the times of a student of continuous time to the nearest noise that a teacher of steps knows."""
        from zoo.family.diffusion.noising import noising_of

        mine, theirs = noising_of(self.scheduler(student)), noising_of(teacher.family.scheduler(teacher))  # type: ignore[attr-defined]
        if mine.alphas is not None or theirs.alphas is None:
            return batch
        level = theirs.matching(mine.at(batch["time"]))
        return batch | {"time": (level.b / (level.a + level.b)).flatten()}

    def teacher_rows(self, student: Model, teacher: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Ask the teacher about the student's noised latents, and make what it predicts into what the student predicts."""
        import torch

        from zoo.family.diffusion import latents
        from zoo.family.diffusion.noising import noising_of

        rows = teacher.family.rows(teacher, batch, [kind for kind in kinds if kind != "velocity"])
        if "velocity" not in kinds:
            return rows
        mine, theirs = noising_of(self.scheduler(student)), noising_of(teacher.family.scheduler(teacher))  # type: ignore[attr-defined]
        with torch.no_grad():
            latent_BLhw = latents.encode(student.module, batch["image"])
        level = mine.at(batch["time"])
        noisy = mine.noised(latent_BLhw, batch["noise"].to(latent_BLhw), level)
        alike = (mine.alphas is None) == (theirs.alphas is None)
        other = theirs.at(batch["time"]) if alike else theirs.matching(level)
        seen = noisy * ((other.a + other.b) / (level.a + level.b))  # the same latents and noise, at the teacher's size
        dtype = next(
            p.dtype for p in latents.part(teacher.module, latents.DENOISERS).parameters() if p.is_floating_point()
        )
        out = latents.denoise(teacher.module, seen.to(dtype), other.step_B, batch["input_ids"])
        if theirs.predicts != mine.predicts:
            out = mine.target(theirs.latent(seen, out, other), theirs.noise(seen, out, other), level)
        each_B = torch.arange(len(out), device=out.device)
        return rows | {"velocity": Rows(out.flatten(1), _unchanged, each_B, time=batch["time"])}

    def generate(
        self,
        model: Model,
        prompt: Any = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        count: int = 1,
        **others: Any,
    ) -> Any:
        """Make `count` images of a prompt, the same for a seed whatever the count.

        Args:
            prompt: the text; "" for an image of anything.
            steps: denoising steps; by default as many as the pipeline's own call takes.
            guidance: how far the text pulls (Ho and Salimans, 2207.12598), 1 for no guidance; by default the pipeline's own.
            others: further options of the pipeline's own call.

        Raises:
            RequestError: the prompt is too long, or an option does not fit.
        """
        from zoo.family.diffusion.captions import require_prompt

        text = require_prompt(
            self.parts(model).get("tokenizer"), "" if prompt is None else prompt, name=model.spec.name
        )
        self.check_options(model, {"steps": steps, "count": count, "seed": seed, "guidance": guidance})
        return [
            image
            for i in range(count)
            for image in self.images(model, [text], seeds=[seed + i], steps=steps, guidance=guidance, **others)
        ]

    def images(
        self,
        model: Model,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        **others: Any,
    ) -> list[Any]:
        """Make one image for each prompt and seed in one batch: quicker, and equal to single ones but for rounding."""
        from inspect import signature

        import torch

        from zoo.errors import RequestError, ZooError, nearest
        from zoo.family.diffusion.latents import without_size
        from zoo.model.health import cause
        from zoo.tensors.finite import all_finite

        pipeline = self.pipeline(model)
        known = [
            name
            for name in signature(pipeline.__call__).parameters
            if name not in ("prompt", "generator", "output_type", "return_dict")
        ]
        own = ["steps", "seed", "guidance", "count"]
        for name in others.keys() - set(known):
            raise RequestError(
                f"{name!r} is not an option of generate.{nearest(name, own + known)} Options: {', '.join(own + known)}."
            )
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        asked = {"num_inference_steps": steps, "guidance_scale": guidance}
        asked = {name: value for name, value in asked.items() if value is not None} | others
        if "height" in known and "height" not in others and without_size(model.module):
            raise RequestError(f"{model.spec.name} does not say how large its images are: pass height and width.")
        pixels = _images_of(model, pipeline, prompt=list(prompts), generator=generators, output_type="np", **asked)
        if not all_finite(torch.from_numpy(pixels)):
            raise ZooError(
                f"{model.spec.name} makes pixels of nan or infinity: {cause(model, self.example(model, batch=1))}."
            )
        images: list[Any] = pipeline.numpy_to_pil(pixels)
        return images


def _images_of(model: Model, pipeline: Any, **asked: Any) -> Any:
    """Call a pipeline for its images.

    Raises:
        RequestError: it cannot make them of what it is given; names the images that it also takes.
    """
    from inspect import signature

    from zoo.errors import RequestError, reason
    from zoo.model.trial import UNFIT

    known = signature(pipeline.__call__).parameters
    if "use_resolution_binning" in known:  # in the model's own size, not in the nearest of a list of sizes (PixArt)
        asked.setdefault("use_resolution_binning", False)
    try:
        return pipeline(**asked).images
    except (*UNFIT, ArithmeticError) as error:
        also = [name for name in known if "image" in name and name not in asked]
        raise RequestError(
            f"{type(pipeline).__name__} of {model.spec.name} makes no image of what it was given ({reason(error)})"
            + (f"; it also takes {', '.join(also)}." if also else ".")
        ) from error


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
