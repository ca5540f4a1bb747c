"""Evaluation of text-to-image models: the error of the velocity on any captioned images; and on digits, whether an
image shows what the prompt says, and how real it is.

For digits a judge (judge.py), trained on the training split, looks at the images. What it says of the real held-out ones is the
baseline "real-images", and stands beside every figure.

Legend: N images, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from zoo.data.dataset import Dataset, Sample
from zoo.data.open import open_data
from zoo.errors import DataError, RequestError, spelled
from zoo.evaluation.intervals import bootstrap_error, delta_method, normal
from zoo.evaluation.shares import accuracy
from zoo.family.diffusion.family import TextToImageFamily
from zoo.model.health import require_finite_outputs
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.tensors.batch import generators
from zoo_snapgen.data import DIGITS
from zoo_snapgen.judge import look

Metric = dict[str, Any]
TASKS = "prompt-agreement and frechet"


class ImageOptions(CompressorOptions):
    """Options of `[evaluate.prompt-agreement]` and `[evaluate.frechet]`."""

    images: int = Field(200, ge=2, examples=[8], description="images made, for prompts spread evenly over the data")
    steps: int = Field(16, ge=1, examples=[4], description="denoising steps of an image")
    guidance: float = Field(2.0, ge=0, description="how far the prompt pulls; 1 for no guidance")
    seed: int = Field(0, ge=0, description="seed of the first image; image i has seed + i")
    batch: int = Field(32, ge=1, description="images made together")


class PromptAgreement:
    """Share of generated images in which the judge sees the digit of the prompt, with its Wilson interval."""

    Options = ImageOptions

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse a model that makes no image of a prompt, and records that name no digit.

        Raises:
            RequestError: says what it needs.
        """
        _text_to_image(model, TASKS).task(model.spec.task).check_prompts(model, ["a"])
        _digits(data, "prompt-agreement")

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; `options` are those of `ImageOptions`.

        Raises:
            DataError: there is no data, or its records do not say which digit they show.
        """
        asked = ImageOptions(**options)
        held_out = _digits(data, "prompt-agreement")
        picked = spread(held_out, asked.images)
        wanted = [sample.fields["digit"] for sample in picked]
        seen = _names(generate(model, picked, asked))
        real = [sample.fields["digit"] for sample in held_out]
        judged = _names([sample.fields["image"] for sample in held_out])
        judge = {key: value for key, value in accuracy(real, judged).items() if key in ("value", "low", "high")}
        return {"prompt_agreement": {**accuracy(wanted, seen, groups=wanted, order=DIGITS), "judge": judge}}


class Frechet:
    """Fréchet distance of generated images from real held-out ones, in the judge's features (FID, 1706.08500, appendix A).

    The interval is 95% by the bootstrap's standard error over the generated images of each digit, since the prompts fix how
    many there are of each, or of all where one is alone. Both clouds being finite, the distance of one real split from the
    other is not 0; it is given as "real", for as many images.
    """

    Options = ImageOptions
    version = 2  # 1: an interval of 1.96, not 1.959964, standard errors

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse a model that makes no image of a prompt, and records that name no digit.

        Raises:
            RequestError: says what it needs.
        """
        _text_to_image(model, TASKS).task(model.spec.task).check_prompts(model, ["a"])
        _several(_digits(data, "frechet"), "frechet")

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; `options` are those of `ImageOptions`.

        Raises:
            DataError: there is no data, or its records have no images.
        """
        asked = ImageOptions(**options)
        held_out = _several(_digits(data, "frechet"), "frechet")
        picked = spread(held_out, asked.images)
        real_NF, made_NF = _features(held_out), look(generate(model, picked, asked))[0]
        value = frechet(made_NF, real_NF)
        groups = [sample.fields["digit"] for sample in picked]
        if min(Counter(groups).values()) < 2:  # alone in its group, an image would not vary
            groups = [""] * len(picked)
        error = bootstrap_error(lambda places: frechet(made_NF[places], real_NF), groups, seed=asked.seed)
        around = normal(value, error)
        around["low"] = max(0.0, around["low"])  # no distance is less
        metric = {"value": value, **around, "n": len(picked), "of": "images", "better": "lower"}
        return {"frechet": {**metric, "real": _real_distance(real_NF, asked.images)}}


class VelocityError:
    """What training minimises, on held-out images: the squared error of the predicted velocity, at logit-normal times.

    Noise and times are drawn from a seed, the same for every model; no caption is left out. Models compare only where
    they have one autoencoder. The interval is 95% by the standard error over the images.
    """

    # 1: what a scheduler predicts that is neither noise nor v was taken for a velocity; 2: 1.96 standard errors
    version = 4  # 3: draws depended on which images ran together

    class Options(CompressorOptions):
        draws: int = Field(4, ge=1, examples=[2], description="draws of noise and time for each image")
        batch: int = Field(64, ge=1, description="images that run together")
        seed: int = Field(0, ge=0, description="seed of the draws")

    def check(self, model: Model, data: Dataset) -> None:
        """Refuse what `measure` would refuse, from the model's structure and its scheduler.

        Raises:
            RequestError: it is no text-to-image model, or one that is not run part by part.
        """
        _text_to_image(model, "velocity-error").check_data(model, data, length=1)

    def measure(self, model: Model, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure on every record.

        Raises:
            DataError: there is no data, or a record has no image.
        """
        if data is None:
            raise DataError(
                f'velocity-error needs test data: add `test = "..."` to [data], or pass {spelled("data", "--data")}.'
            )
        asked, family = self.Options(**options), _text_to_image(model, "velocity-error")
        windows = family.windows(model, data, length=1)
        errors_DN = torch.zeros(asked.draws, len(windows))
        with torch.inference_mode():
            for draw in range(asked.draws):
                for start in range(0, len(windows), asked.batch):
                    some = range(start, min(start + asked.batch, len(windows)))
                    batch = family.collate(model, [windows[i] for i in some])
                    chance = generators(asked.seed, (draw * len(windows) + i for i in some))
                    batch = family.draw(model, batch, chance) | {"input_ids": batch["input_ids"]}
                    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                    rows = family.rows(model, batch, ("velocity",))["velocity"]
                    assert rows.target is not None
                    error_N = (rows.hidden - rows.target).square().mean(-1)
                    require_finite_outputs(model, error_N, batch, of=[data[i].where for i in some])
                    errors_DN[draw, some.start : some.stop] = error_N.cpu()
        each_N = errors_DN.mean(0)
        mean = delta_method(each_N, torch.ones_like(each_N))
        return {"velocity_error": {**mean, "of": "images", "better": "lower"}}


class RealImages:
    """What the judge says of real images: how often it is right, and how far the two real splits are apart."""

    Options = ImageOptions
    label = "real images"

    def measure(self, model: Model | None, data: Dataset | None, *, options: Mapping[str, Any]) -> dict[str, Metric]:
        """Measure; of the options, `images` counts: how many of the training split are compared."""
        held_out = _several(_digits(data, "real-images"), "real-images")
        real = [sample.fields["digit"] for sample in held_out]
        judged = _names([sample.fields["image"] for sample in held_out])
        distance = _real_distance(_features(held_out), ImageOptions(**options).images)
        return {
            "prompt_agreement": accuracy(real, judged, groups=real, order=DIGITS),
            "frechet": {"value": distance, "better": "lower"},
        }


def generate(model: Model, samples: Sequence[Sample], options: ImageOptions) -> list[Any]:
    """Make one image for each record's caption, in batches."""
    family = _text_to_image(model, TASKS)
    images: list[Any] = []
    for start in range(0, len(samples), options.batch):
        prompts = [sample.text for sample in samples[start : start + options.batch]]
        seeds = [options.seed + start + i for i in range(len(prompts))]
        images += family.images(model, prompts, seeds=seeds, steps=options.steps, guidance=options.guidance)
    return images


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Pick `count` records evenly; some more than once where there are fewer."""
    return [samples[i * len(samples) // count] for i in range(count)]


def frechet(one_NF: torch.Tensor, other_NF: torch.Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½) of two clouds of features."""
    (mean, cov), (other_mean, other_cov) = (
        (cloud.double().mean(0), torch.cov(cloud.double().T)) for cloud in (one_NF, other_NF)
    )
    root = _root(cov)
    cross = torch.linalg.eigvalsh(root @ other_cov @ root).clamp_min(0).sqrt().sum()
    return float((mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * cross)


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: torch.Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def _text_to_image(model: Model, task: str) -> TextToImageFamily:
    if not isinstance(model.family, TextToImageFamily):
        raise RequestError(f"{task}: for text-to-image models; {model.spec.name} is {model.spec.modality}.")
    return model.family


def _digits(data: Dataset | None, task: str) -> Dataset:
    if data is None:
        raise DataError(
            f'{task} needs test data: add `test = "digits-captions:test"` to [data], or pass '
            f"{spelled('data', '--data')}."
        )
    for sample in data:
        if sample.fields.get("digit") not in DIGITS or sample.fields.get("image") is None:
            raise DataError(
                f'{sample.where}: {task} needs an "image" and its "digit" ("zero" to "nine"), as digits-captions has.'
            )
    return data


def _several(data: Dataset, task: str) -> Dataset:
    if len(data) < 2:
        raise DataError(f"{data.name!r} holds one image; the spread of images, which {task} compares, takes two.")
    return data


def _names(images: Sequence[Any]) -> list[str]:
    return [DIGITS[digit] for digit in look(images)[1].tolist()]


def _features(samples: Sequence[Sample]) -> torch.Tensor:
    return look([sample.fields["image"] for sample in samples])[0]


def _real_distance(real_NF: torch.Tensor, count: int) -> float:
    """Distance of `count` images of the training split."""
    return frechet(_features(spread(open_data("digits-captions:train"), count)), real_NF)
