"""Teachers of text-to-image models: other predictions are converted exactly, other latents and other parts are refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from zoo_compress import Recipe, apply, plan

import zoo
from zoo.data.open import open_data
from zoo.errors import Refused
from zoo.family.diffusion import latents
from zoo.family.diffusion.noising import noising_of
from zoo.model.context import Context
from zoo.model.model import Model

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = {
    "epsilon": diffusers.DDIMScheduler(**BETAS),
    "sample": diffusers.DDIMScheduler(prediction_type="sample", **BETAS),
    "v": diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS),
    "velocity": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("plain") / "sd")


def copied(directory: Path, place: Path, *, scheduler: Any = None, seed: int | None = None) -> Path:
    """The pipeline with another scheduler, or another autoencoder of the same config."""
    shutil.copytree(directory, place)
    if scheduler is not None:
        scheduler.save_pretrained(place / "scheduler")
        index = json.loads((place / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (place / "model_index.json").write_text(json.dumps(index))
    if seed is not None:
        vae = diffusers.AutoencoderKL.from_pretrained(place / "vae")
        generator = torch.Generator().manual_seed(seed)
        for parameter in vae.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        vae.save_pretrained(place / "vae")
    return place


def planned(folder: Path, student: Path, teacher: Path | str) -> Any:
    file = folder / "recipe.toml"
    file.write_text(
        f'[recipe]\nname = "small"\n[model]\nname = "{student}"\n[data]\ntrain = "digits-captions:train[:8]"\n'
        f'[[stage]]\nuse = "distill"\nteacher = "{teacher}"\nsteps = 1\nbatch = 2\nwarmup = 0\n'
        "[evaluate]\nspeed = false\ntasks = []\n"
    )
    return plan(Recipe.load(file))


# --- predictions ------------------------------------------------------------------------------------------------------


class Knowing(torch.nn.Module):
    """A denoiser that knows the latents, and answers by a scheduler's own rule."""

    def __init__(self, unet: Any, scheduler: Any, z: torch.Tensor) -> None:
        super().__init__()
        self.config, self.weight = unet.config, torch.nn.Parameter(torch.zeros(1))
        self.scheduler, self.z = scheduler, z
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, step: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        self.seen.append(step)
        kind = self.scheduler.config.get("prediction_type", "flow_prediction")
        if kind == "flow_prediction":
            a, b = 1 - step / 1000, step / 1000
        else:
            a, b = self.scheduler.alphas_cumprod[step].sqrt(), (1 - self.scheduler.alphas_cumprod[step]).sqrt()
        a, b = (factor.double()[:, None, None, None] for factor in (a, b))
        noise = (x.double() - a * self.z) / b
        out = {
            "epsilon": noise,
            "sample": self.z.double(),
            "v_prediction": a * noise - b * self.z,
            "flow_prediction": noise - self.z,
        }[kind]
        return diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput(sample=out.float())


@pytest.mark.parametrize(("student_kind", "teacher_kind"), itertools.product(KINDS, KINDS))
def test_a_teacher_that_knows_the_answer_predicts_the_target(student_kind: str, teacher_kind: str, directory: Path):
    """Whatever either predicts: the teacher's rows are then what the data itself asks of the student."""
    student, teacher = zoo.load(directory), zoo.load(directory)
    student.processor["scheduler"], teacher.processor["scheduler"] = KINDS[student_kind], KINDS[teacher_kind]
    family, kinds = student.family, ("velocity",)
    assert family.comparable(student, teacher) == ""
    batch = family.example(student, batch=6) | {"time": torch.tensor([0.02, 0.1, 0.4, 0.7, 0.9, 0.99])}
    batch = family.shared_batch(student, teacher, batch)
    with torch.no_grad():
        z = latents.encode(student.module, batch["image"])
        knowing = Knowing(teacher.module.unet, KINDS[teacher_kind], z)
        teacher.module.unet = knowing
        taught = family.teacher_rows(student, teacher, batch, kinds)["velocity"].hidden
        target = family.rows(student, batch, kinds)["velocity"].target
    assert target is not None
    torch.testing.assert_close(taught, target, rtol=2e-3, atol=5e-3)
    assert noising_of(KINDS[teacher_kind]).alphas is None or knowing.seen[0].dtype == torch.int64


def test_times_move_only_to_steps_that_the_teacher_knows(directory: Path):
    student, teacher = zoo.load(directory), zoo.load(directory)
    student.processor["scheduler"] = KINDS["velocity"]
    batch = student.family.example(student, batch=64) | {"time": torch.linspace(0.03, 0.93, 64)}
    moved = student.family.shared_batch(student, teacher, batch)["time"]
    assert 0 < float((moved - batch["time"]).abs().max()) < 2e-3
    steps = teacher.processor["scheduler"].alphas_cumprod
    ratio = (1 - steps).sqrt() / (steps.sqrt() + (1 - steps).sqrt())
    assert float((moved[:, None] - ratio).abs().min(1).values.max()) < 1e-6
    assert student.family.shared_batch(teacher, student, batch) is batch


def test_a_flow_is_distilled_from_noise_predictions(directory: Path, tmp_path: Path):
    student = copied(directory, tmp_path / "flow", scheduler=KINDS["velocity"])
    assert planned(tmp_path, student, directory).stages[1].note == ""
    data = {"train": open_data("digits-captions:train[:8]")}
    model = zoo.load(student)
    apply(
        model,
        "distill",
        {"teacher": "it", "steps": 2, "batch": 2, "warmup": 0},
        Context(data=data, load=lambda _: zoo.load(directory)),
    )
    assert [stage.use for stage in model.lineage] == ["distill"]


def test_schedulers_of_different_noise_are_refused(directory: Path, tmp_path: Path):
    other = copied(directory, tmp_path / "other", scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(Refused, match=r"cannot both be asked at: their schedulers' steps have different noise"):
        planned(tmp_path, directory, other)
    unknown = copied(directory, tmp_path / "unknown", scheduler=diffusers.EDMEulerScheduler())
    with pytest.raises(Refused, match=r"unknown cannot .* EDMEulerScheduler noises latents in a way"):
        planned(tmp_path, directory, unknown)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_a_teacher_of_another_autoencoder_is_refused_in_the_plan(directory: Path, tmp_path: Path):
    other = copied(directory, tmp_path / "other", seed=1)
    with pytest.raises(Refused, match=r"autoencoders of sd and of the teacher other differ: encoder\.\S+ differs"):
        planned(tmp_path, directory, other)
    scaled = copied(directory, tmp_path / "scaled")
    config = json.loads((scaled / "vae" / "config.json").read_text())
    (scaled / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    with pytest.raises(Refused, match=r"teacher scaled differ: scaling_factor is 0\.18215 and 0\.5"):
        planned(tmp_path, directory, scaled)
    for model in (zoo.load(directory), apply(zoo.load(directory), "quantize.int8", {"target": "vae"})):
        assert "differs" in model.family.comparable(model, zoo.load(other))


def test_the_same_autoencoder_elsewhere_or_in_half_precision_is_taken(directory: Path, tmp_path: Path):
    again = copied(directory, tmp_path / "again")
    vae = diffusers.AutoencoderKL.from_pretrained(again / "vae")
    vae.to(torch.float16).save_pretrained(again / "vae")
    planned(tmp_path, directory, again)
    for model in (zoo.load(directory), apply(zoo.load(directory), "quantize.int8", {"target": "vae"})):
        saved = zoo.load(model.save(tmp_path / str(len(model.lineage))))
        for student in (model, saved):
            assert student.family.comparable(student, zoo.load(again)) == ""


def test_a_student_of_random_weights_has_latents_of_its_own(directory: Path):
    student = zoo.load(directory, weights="random")
    assert "differs" in student.family.comparable(student, zoo.load(directory))
    skeleton = zoo.load(directory, weights="random", device="meta")
    assert "the weights of sd are random" in skeleton.family.comparable(skeleton, zoo.load(directory, device="meta"))
    assert student.family.comparable(student, zoo.load(directory, weights="random")) == ""


# --- other parts ------------------------------------------------------------------------------------------------------


def pixart(folder: Path) -> Path:
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel
    from zoo_snapgen.data import WORDS
    from zoo_snapgen.text import word_tokenizer

    PixArtAlphaPipeline(
        tokenizer=word_tokenizer(WORDS, length=12),
        text_encoder=T5EncoderModel(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
        vae=AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, sample_size=8),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=4,
            num_attention_heads=2,
            in_channels=4,
            cross_attention_dim=8,
            caption_channels=8,
            norm_num_groups=4,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)
    return folder


def test_teachers_of_other_parts_are_refused_in_the_plan(directory: Path, tmp_path: Path):
    for place in (pixart(tmp_path / "other"), pipelines.stable_diffusion_xl(tmp_path / "xl")):
        with pytest.raises(Refused, match=rf"{place.name} cannot .* are run part by part"):
            planned(tmp_path, directory, place)
    with pytest.raises(Refused, match=r"distill compares images: the teacher tiny-code is text"):
        planned(tmp_path, directory, "tiny-code")


def test_a_teacher_of_images_of_other_channels_is_refused_in_the_plan(directory: Path, tmp_path: Path):
    grey = pipelines.snapgen().save(tmp_path / "grey")
    for student, teacher in ((directory, grey), (grey, directory)):
        with pytest.raises(Refused, match="Choose a teacher with the same autoencoder"):
            planned(tmp_path, student, teacher)


def test_a_teacher_of_another_tokenizer_is_refused_in_the_plan(directory: Path, tmp_path: Path):
    from zoo_snapgen.data import WORDS
    from zoo_snapgen.text import word_tokenizer

    other = copied(directory, tmp_path / "other")
    word_tokenizer([*WORDS[1:], WORDS[0]], length=12).save_pretrained(other / "tokenizer")
    with pytest.raises(Refused, match=r"read '.+' differently\. Choose a teacher with the same tokenizer"):
        planned(tmp_path, directory, other)


def test_a_catalogued_teacher_is_compared_by_its_packaged_weights(tmp_path: Path):
    teacher = zoo.load("tiny-t2i")
    saved = teacher.save(tmp_path / "same")
    planned(tmp_path, saved, "tiny-t2i")
    model: Model = zoo.load(saved)
    with torch.no_grad():
        for parameter in model.module.decoder.encoder.parameters():
            parameter.add_(0.1)
    with pytest.raises(Refused, match="teacher tiny-t2i differ: encoder"):
        planned(tmp_path, model.save(tmp_path / "moved"), "tiny-t2i")
