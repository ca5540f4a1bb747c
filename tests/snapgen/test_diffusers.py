"""Any diffusers pipeline directory, as diffusers itself saves it; and directories that are not what they seem."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo_snapgen import family

import zoo
from zoo.data.open import open_data
from zoo.errors import ArtifactError, Refused, RequestError
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.tensors.batch import generators
from zoo.tensors.offload import is_offloaded
from zoo.testing import check_estimate, check_exact_reload

Stages = list[tuple[str, dict[str, Any]]]
TRAINING = {"steps": 1, "batch": 2, "warmup": 0}
SHARED: Stages = [
    ("prune.structured", {"ffn": 0.25, "heads": 0.5, "target": "text_encoder"}),
    ("prune.magnitude", {"sparsity": 0.5, "target": "unet"}),
    ("quantize.int8", {}),
    ("quantize.nf4", {"target": "unet"}),
    (
        "quantize.int4",
        {"target": "unet", "convolutions": True, "group": 32, "method": "gptq", "samples": 4, "batch": 1},
    ),
    ("distill", TRAINING),
    ("lowrank.svd", {"ratio": 0.5, "samples": 2, "target": "unet"}),
]
CHAINS: dict[str, list[Stages]] = {
    "snapgen": [
        [],
        [
            ("inherit", {"layers": "first:2", "target": "unet.down.2"}),
            ("share.ffn", {"target": "unet.down.2"}),
            ("quantize.int8", {}),
        ],
        [
            ("prune.structured", {"ffn": 0.25, "target": "unet"}),
            ("distill", {**TRAINING, "loss": [{"use": "velocity-kd"}]}),
        ],
        [("prune.structured", {"ratio": 0.25, "target": "unet"}), ("quantize.int8", {})],
        *([one] for one in SHARED),
    ],
    "stable-diffusion": [[], *([one] for one in SHARED)],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("plain") / "sd")


def made(kind: str, directory: Path) -> Model:
    return pipelines.snapgen() if kind == "snapgen" else pipelines.awake(zoo.load(directory))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_no_more_than_a_component_is_in_memory_where_weights_are_kept_in_files(
    dtype: str | None, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = zoo.load(directory, dtype=dtype).tensors()
    read, loaded, in_files = family._load_component, [], []

    def watched(*given: Any) -> torch.nn.Module:
        in_files.append(all(is_offloaded(weight) for part in loaded for weight in part.parameters()))
        loaded.append(read(*given))
        return loaded[-1]

    monkeypatch.setattr(family, "_load_component", watched)
    tensors = zoo.load(directory, dtype=dtype, offload=tmp_path).tensors()
    assert len(in_files) > 1 and all(in_files)
    assert all(is_offloaded(tensor) for tensor in tensors.values() if tensor.numel())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in plain.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("kind", CHAINS)
def test_compressed_pipelines_reload_exactly(kind: str, directory: Path, tmp_path: Path):
    original, data = made(kind, directory), open_data("digits-captions:train[:8]")
    context = Context(data={"train": data, "calibration": data}, load=lambda _: original.copy())
    done = []
    for stages in CHAINS[kind]:
        model = original
        for use, options in stages:
            model = check_estimate(model, use, options, context)
        done.append(model)
    check_exact_reload(done, tmp_path)


def test_images_are_those_of_diffusers_itself(directory: Path):
    from diffusers import StableDiffusionPipeline

    model = zoo.load(directory)
    assert (model.spec.family, model.spec.modality) == ("diffusers", "text-to-image")
    plain = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    asked = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(7)}
    image = model.generate("a seven", steps=2, guidance=2.0, seed=7)[0]
    assert image.tobytes() == plain("a seven", **asked).images[0].tobytes()
    with pytest.raises(RequestError, match=r"'negative' is not an option of generate\. Did you mean 'negative_prompt'"):
        model.generate("a", negative="b")


def test_a_pipeline_that_is_not_trained_here_is_still_packed_and_makes_images(tmp_path: Path):
    model = zoo.load(pipelines.stable_diffusion_xl(tmp_path / "xl"))
    assert {"text_encoder", "text_encoder_2", "unet.down.1", "unet.mid"} <= set(model.anatomy.stacks)
    packed = check_estimate(model, "quantize.int8", {"target": "unet"})
    again = zoo.load(packed.save(tmp_path / "packed"))
    one, other = (each.generate("a seven", steps=2)[0].tobytes() for each in (packed, again))
    assert one == other
    assert torch.equal(*(each.family.forward(each, each.family.example(each)) for each in (packed, again)))
    with pytest.raises(Refused, match=r"one text encoder are run part by part.* text_encoder_2"):
        model.family.windows(model, open_data("digits-captions:train[:2]"), length=1)


def test_a_saved_pipeline_stays_a_plain_one(directory: Path, tmp_path: Path):
    from diffusers import StableDiffusionPipeline

    model = zoo.load(directory)
    place = model.save(tmp_path / "again")
    assert json.loads((place / "zoo.json").read_text())["plain"] == ""
    plain = StableDiffusionPipeline.from_pretrained(place)
    for name, tensor in plain.unet.state_dict().items():
        assert torch.equal(tensor, model.module.unet.get_parameter(name))  # type: ignore[union-attr,operator]


def test_noise_follows_the_scheduler(directory: Path):
    """Stable Diffusion predicts eps; its noised latent is sqrt(a) z + sqrt(1 - a) eps, as DDIMScheduler.add_noise."""
    from zoo.family.diffusion import latents

    scheduler = zoo.load(directory).processor["scheduler"]
    z, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, step, target = latents.noised(scheduler, z, eps, torch.tensor([0.2, 0.9]))
    torch.testing.assert_close(noisy, scheduler.add_noise(z, eps, step))
    assert target is eps
    torch.testing.assert_close(
        latents.without_noise(scheduler, noisy, eps, torch.tensor([0.2, 0.9])), z, rtol=1e-3, atol=1e-3
    )
    scheduler.register_to_config(prediction_type="v_prediction")
    noisy, step, target = latents.noised(scheduler, z, eps, torch.tensor([0.2, 0.9]))
    torch.testing.assert_close(target, scheduler.get_velocity(z, eps, step))


def test_meta_and_random_builds_need_no_weights(directory: Path):
    assert (
        zoo.load(directory, device="meta").params
        == zoo.load(directory, weights="random").params
        == zoo.load(directory).params
    )


# --- directories that are not what they seem -------------------------------------------------------------------------

EVIL = 'import pathlib\npathlib.Path(__file__).with_name("ran").touch()\n'


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_class_name": ["pipeline_evil", "EvilPipeline"]}, "no public DiffusionPipeline"),
        ({"_class_name": "os"}, "no public DiffusionPipeline"),
        ({"_class_name": "UNet2DConditionModel"}, "no public DiffusionPipeline"),
        ({"_class_name": None}, "no public DiffusionPipeline"),
        ({"unet": ["evil", "Evil"]}, "names the library 'evil'"),
        ({"unet": ["diffusers_modules.local.evil", "Evil"]}, "names the library"),
        ({"unet": ["diffusers", "pipelines.stable_diffusion.StableDiffusionSafetyChecker"]}, "no public ModelMixin"),
        ({"unet": ["diffusers", "StableDiffusionPipeline"]}, "no public ModelMixin"),
        ({"unet": ["zoo_snapgen.unet", "word_tokenizer"]}, "names the library"),
        ({"unet": ["torch.nn", "Linear"]}, "names the library"),
        ({"../../unet": ["diffusers", "UNet2DConditionModel"]}, "is not the name of a component"),
        ({"unet": ["diffusers"]}, "names the library"),
    ],
)
def test_an_index_that_names_other_code_is_refused(directory: Path, tmp_path: Path, change: dict[str, Any], match: str):
    place = _copy(directory, tmp_path)
    for file in (place / "pipeline_evil.py", place / "unet" / "evil.py", place / "evil.py"):
        file.write_text(EVIL)
    index = place / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    for device in (None, "meta"):
        with pytest.raises(ArtifactError, match=match):
            zoo.load(place, device=device)
    assert not list(place.rglob("ran"))


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("unet/config.json", {"_class_name": "EvilUNet"}, "no public ModelMixin or PreTrainedModel"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "asks for remote code"),
        ("text_encoder/config.json", {"architectures": ["Evil"]}, "no public ModelMixin or PreTrainedModel"),
        (
            "tokenizer/tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
            "asks for remote code",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "Evil"}, "no public SchedulerMixin"),
    ],
)
def test_a_component_that_names_other_code_is_refused(
    directory: Path, tmp_path: Path, file: str, change: dict[str, Any], match: str
):
    place = _copy(directory, tmp_path)
    config = json.loads((place / file).read_text()) | change
    (place / file).write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=match):
        zoo.load(place)


def test_pickles_and_damaged_weights_are_refused(directory: Path, tmp_path: Path):
    place = _copy(directory, tmp_path)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=r"unet/diffusion_pytorch_model.safetensors"):
        zoo.load(place)
    weights.unlink()
    torch.save({}, place / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"unet holds no .safetensors file"):
        zoo.load(place)


def test_only_a_components_own_files_count(directory: Path, tmp_path: Path):
    """Beside it another precision; alone, that is none that diffusers looks for, and codes are no weights."""
    place = _copy(directory, tmp_path)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, weights.with_suffix(".fp16.safetensors"))
    assert zoo.load(place).dtype == zoo.load(place, device="meta").dtype == "float32"
    save_file({name: (tensor * 99).to(torch.int8) for name, tensor in tensors.items()}, weights)
    for device in (None, "meta"):
        with pytest.raises(ArtifactError, match="is of I8, the codes of a quantizer that no config there names"):
            zoo.load(place, device=device)
    weights.unlink()
    for device in (None, "meta"):
        with pytest.raises(ArtifactError, match=r"fp16.safetensors, but no diffusion_pytorch_model.safetensors"):
            zoo.load(place, device=device)


def test_missing_tensors_are_not_drawn_at_random(directory: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    place = _copy(directory, tmp_path)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match=r"conv_in.weight.* is missing"):
        zoo.load(place)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"_class_name": "StableDiffusionPipeline"'])
def test_an_unreadable_index_is_one_sentence(directory: Path, tmp_path: Path, content: str):
    place = _copy(directory, tmp_path)
    (place / "model_index.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"model_index\.json"):
        zoo.load(place)


def _copy(directory: Path, folder: Path) -> Path:
    return Path(shutil.copytree(directory, folder / "changed"))


# --- what cannot be trained is said before any work --------------------------------------------------------------------


def _with_scheduler(directory: Path, tmp_path: Path, **config: Any) -> Path:
    place = _copy(directory, tmp_path)
    file = place / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return place


def _plan(tmp_path: Path, model: Path, **stage: Any) -> Any:
    from zoo_compress import Recipe, plan

    told = "".join(f"{key} = {json.dumps(value)}\n" for key, value in ({"steps": 1, "batch": 2} | stage).items())
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'[recipe]\nname = "small"\n[model]\nname = "{model}"\n[data]\ntrain = "digits-captions:train[:8]"\n[[stage]]\nuse = "distill"\n{told}'
        "[evaluate]\nspeed = false\ntasks = []\n"
    )
    return plan(Recipe.load(file))


def test_the_plan_refuses_a_scheduler_that_training_does_not_know(directory: Path, tmp_path: Path):
    place = _with_scheduler(directory, tmp_path, _class_name="DDPMScheduler", prediction_type="flow_prediction")
    with pytest.raises(Refused, match=r"stage 1 \(distill\): .*DDPMScheduler has prediction_type = 'flow_prediction'"):
        _plan(tmp_path, place)
    model = zoo.load(place)
    with pytest.raises(Refused, match="prediction_type = 'flow_prediction'"):
        model.family.windows(model, open_data("digits-captions:train[:2]"), length=1)


# --- pipelines that are not plain text to image ------------------------------------------------------------------------


def _class_conditional(folder: Path) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=4, norm_num_groups=4
    )
    DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def _unconditional(folder: Path) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [_class_conditional, _unconditional])
def test_a_pipeline_without_a_prompt_is_refused_at_load_and_in_the_plan(make: Any, tmp_path: Path):
    place = make(tmp_path / "other")
    match = (
        r"other is a (DiT|DDPM)Pipeline, which takes no prompt; zoo reads pipelines that draw images of a text prompt"
    )
    for options in ({}, {"device": "meta"}, {"weights": "random"}):
        with pytest.raises(ArtifactError, match=match):
            zoo.load(place, **options)
    with pytest.raises(ArtifactError, match=match):
        _plan(tmp_path, place)


def test_only_pipelines_that_draw_images_of_a_prompt_are_read():
    import diffusers
    from zoo_snapgen import classes

    refused = []
    for name in dir(diffusers):
        cls = classes._public(diffusers, name) if name.endswith("Pipeline") else None
        if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):
            try:
                classes.require_drawing(cls, where="here")
            except ArtifactError as error:
                refused.append(name)
                assert name in str(error)
    assert {"DiTPipeline", "DDPMPipeline", "StableVideoDiffusionPipeline", "WanPipeline", "AudioLDMPipeline"} <= {
        *refused
    }
    assert not {"StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline", "PixArtSigmaPipeline"} & {
        *refused
    }


def test_a_pipeline_that_draws_into_images_says_so(directory: Path, tmp_path: Path):
    place = _copy(directory, tmp_path)
    index = place / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionImg2ImgPipeline"}))
    model = zoo.load(place)
    with pytest.raises(RequestError, match="Img2ImgPipeline, which draws from images that prompts alone do not bring"):
        task_of(model).check_prompts(model, ["a seven"])
    with pytest.raises(
        RequestError, match=r"StableDiffusionImg2ImgPipeline of changed makes no image .* also takes image"
    ):
        model.generate("a seven", steps=2)
    from PIL import Image

    assert model.generate("a seven", steps=4, image=Image.new("RGB", (16, 16)))[0].size == (16, 16)


def test_images_need_not_be_square_and_a_tokenizer_need_not_say_its_length(directory: Path, tmp_path: Path):
    place = _copy(directory, tmp_path)
    for file, changes in {"unet/config.json": {"sample_size": [8, 12]}, "tokenizer/tokenizer_config.json": {}}.items():
        config = json.loads((place / file).read_text()) | changes
        config.pop("model_max_length", None)
        (place / file).write_text(json.dumps(config))
    model = zoo.load(place)
    window = model.family.windows(model, open_data("digits-captions:train[:2]"), length=1)[0]
    assert (window["image"].shape, window["input_ids"].shape) == ((3, 16, 24), (12,))
    drawn = model.family.draw(model, model.family.collate(model, [window]), generators(0, range(1)))
    assert model.family.rows(model, drawn, ("velocity",))["velocity"].hidden.shape == (1, 4 * 8 * 12)
    assert model.generate("a seven", steps=1)[0].size == (24, 16)


def test_a_pipeline_of_no_size_is_drawn_at_one_that_is_given(directory: Path, tmp_path: Path):
    place = _copy(directory, tmp_path)
    file = place / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": None}))
    model = zoo.load(place)
    assert model.generate("a seven", steps=1, height=16, width=16)[0].size == (16, 16)
    with pytest.raises(RequestError, match="does not say how large its images are: pass height and width"):
        model.generate("a seven", steps=1)
    with pytest.raises(Refused, match="do not say how large its images are"):
        _plan(tmp_path, place)
