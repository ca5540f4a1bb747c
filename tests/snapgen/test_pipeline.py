"""The SnapGen pipeline and its family: sampling, guidance, seeds, training items, and what is on disk."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pipelines
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import snapgen
from zoo_snapgen.pipeline import SnapGenPipeline

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.data.open import open_data
from zoo.errors import DataError, RequestError
from zoo.family import TextToImageFamily
from zoo.family.diffusion import captions, latents
from zoo.family.task import task_of
from zoo.model.model import Model
from zoo.tensors.batch import generators
from zoo.testing import random_state_kept


@pytest.fixture(scope="module")
def model() -> Model:
    return snapgen()


def family(model: Model) -> TextToImageFamily:
    assert isinstance(model.family, TextToImageFamily)
    return model.family


# --- sampling -------------------------------------------------------------------------------------------------------


def test_sampler_takes_euler_steps_down_the_guided_flow(model: Model):
    """x goes from t = 1 to 0 in equal steps, x += (t' - t) (v0 + g (v - v0)), the time given in thousandths."""
    pipeline = family(model).pipeline(model)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    text, empty = (pipeline.encode_prompt([words]) for words in ("a seven", ""))
    x, steps = noise, 4
    with torch.no_grad():
        for step in range(steps):
            t, after = 1 - step / steps, 1 - (step + 1) / steps
            v, v0 = (pipeline.unet(x, 1000 * t, states).sample for states in (text, empty))
            x = x + (after - t) * (v0 + 2.5 * (v - v0))
        expected = model.module.decoder.decode(x).sample  # type: ignore[union-attr,operator]
    asked = {"num_inference_steps": steps, "guidance_scale": 2.5, "latents": noise, "output_type": "pt"}
    found = pipeline("a seven", **asked).images
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-4)


def test_without_guidance_the_empty_prompt_is_not_run(model: Model):
    calls = []
    hook = model.module.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))  # type: ignore[union-attr,operator]
    try:
        model.generate("a seven", steps=2, guidance=1.0)
        model.generate("a seven", steps=2)
    finally:
        hook.remove()
    assert calls == [1, 1, 2, 2]


def test_an_image_depends_on_its_seed_alone(model: Model):
    with random_state_kept("generate"):
        three = model.generate("a seven", steps=2, seed=4, count=3)
    alone = [model.generate("a seven", steps=2, seed=seed)[0] for seed in (4, 5, 6)]
    assert [one.tobytes() for one in three] == [one.tobytes() for one in alone]
    assert len({one.tobytes() for one in three}) == 3


def test_batched_images_are_the_single_ones_but_for_rounding(model: Model):
    import numpy as np

    together = family(model).images(model, ["a two", "an eight"], seeds=[1, 2], steps=2, guidance=3.0)
    for image, prompt, seed in zip(together, ("a two", "an eight"), (1, 2), strict=True):
        alone = model.generate(prompt, steps=2, seed=seed, guidance=3.0)[0]
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


@pytest.mark.parametrize("prompt", ["", None, "A SEVEN!", "七 \u0000 \u202e seven", "🙂" * 3])
def test_any_short_prompt_makes_an_image(model: Model, prompt: str | None):
    (image,) = model.generate(prompt, steps=1)
    assert (image.size, image.mode) == ((32, 32), "L")


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        ("seven " * 20_000, {}, r"20,002 tokens long; small reads at most 12"),
        ("a \ud800 seven", {}, "half a character at position 2"),
        (7, {}, "A prompt is one text, not int"),
        ("a", {"steps": 0}, "steps = 0: input should be greater than or equal to 1"),
        ("a", {"count": 1.5}, "count = 1.5: input should be a whole number"),
        ("a", {"guidence": 2}, "'guidence' is not an option of generate. Did you mean"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(model: Model, prompt: object, options: dict[str, object], match: str):
    with pytest.raises(RequestError, match=match):
        model.generate(prompt, **options)


# --- training items -------------------------------------------------------------------------------------------------


def test_rows_are_the_flow_and_its_velocity(model: Model):
    data = open_data("digits-captions:train[:4]")
    windows = model.family.windows(model, data, length=1)
    batch = model.family.collate(model, [windows[i] for i in range(4)])
    batch = model.family.draw(model, batch, generators(0, range(4)))
    rows = model.family.rows(model, batch, ("velocity", "pixel"))
    latent = latents.encode(model.module, batch["image"])
    target = rows["velocity"].target
    assert target is not None
    torch.testing.assert_close(target, (batch["noise"] - latent).flatten(1))
    t = batch["time"][:, None, None, None]
    states = model.module.text_encoder(batch["input_ids"])[0]  # type: ignore[union-attr,operator]
    out = model.module.unet((1 - t) * latent + t * batch["noise"], 1000 * batch["time"], states).sample  # type: ignore[union-attr,operator]
    torch.testing.assert_close(rows["velocity"].hidden, out.flatten(1))
    assert rows["pixel"].target is not None
    assert float(rows["pixel"].target.min()) == -1.0


def test_gradients_reach_what_each_loss_trains(model: Model):
    batch = model.family.example(model, batch=2)
    for kind, trained in {"velocity": {"unet", "text_encoder"}, "pixel": {"decoder"}}.items():
        model.module.zero_grad()
        rows = model.family.rows(model, batch, (kind,))[kind]
        assert rows.target is not None
        (rows.hidden - rows.target).square().mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.module.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.any())
            # softmax does not see a shift of keys
            unread = name.endswith(("final_layer_norm.bias",)) or "k_proj.bias" in name
            assert reached == (name.partition(".")[0] in trained) or unread, name
    model.module.zero_grad()


def test_draw_is_logit_normal_and_drops_a_tenth_of_the_captions(model: Model):
    ids = captions.prompt_ids(family(model).parts(model)["tokenizer"], ["a seven"]).expand(2000, -1)
    batch = {"image": torch.zeros(2000, 1, 32, 32, dtype=torch.uint8), "input_ids": ids}
    with random_state_kept("draw"):
        drawn = model.family.draw(model, batch, generators(0, range(2000)))
    times = torch.logit(drawn["time"].double())
    assert (float(times.mean()), float(times.std())) == pytest.approx((0, 1), abs=0.06)
    dropped = (drawn["input_ids"] == captions.prompt_ids(family(model).parts(model)["tokenizer"], [""])).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    again = model.family.draw(model, batch, generators(0, range(2000)))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def test_records_of_any_size_are_fitted_and_others_refused(model: Model):
    import numpy as np

    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255  # the middle square
    windows = model.family.windows(model, Dataset("one", [Sample({"text": "a one", "image": wide}, "one:1")]), length=1)
    assert windows[0]["image"].shape == (1, 32, 32)
    assert int(windows[0]["image"].min()) > 200
    for ask in (model.family.windows, model.family.check_data):  # the second in a plan
        with pytest.raises(DataError, match="one:1: no field 'image'"):
            ask(model, Dataset("one", [Sample({"text": "a one"}, "one:1")]), length=1)
    with pytest.raises(DataError, match="one:1: no field 'text'"):
        model.family.check_data(model, Dataset("one", [Sample({"image": wide}, "one:1")]), length=1)


# --- on disk --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save(tmp_path_factory.mktemp("saved") / "small")


def test_a_saved_model_is_a_diffusers_directory(saved: Path):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "SnapGenPipeline"
    assert index["unet"] == ["zoo_snapgen.unet", "SnapGenUNet"]
    files = {str(file.relative_to(saved)) for file in saved.rglob("*.safetensors")}
    assert files == {
        "unet/diffusion_pytorch_model.safetensors",
        "decoder/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


def test_the_card_says_whose_classes_diffusers_needs(saved: Path):
    assert (
        "cannot load this folder: its classes come with zoo (after `import zoo_snapgen.pipeline` it can)."
        in (saved / "README.md").read_text()
    )


@pytest.mark.parametrize("cls", [SnapGenPipeline, DiffusionPipeline])
def test_diffusers_loads_it_with_equal_images(model: Model, saved: Path, cls: type):
    pipeline = cls.from_pretrained(saved)  # type: ignore[attr-defined]
    assert type(pipeline) is SnapGenPipeline
    image = pipeline("a seven", num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    assert image.tobytes() == model.generate("a seven", steps=2, seed=3)[0].tobytes()


def test_what_diffusers_saves_loads_as_the_same_model(model: Model, saved: Path, tmp_path: Path):
    SnapGenPipeline.from_pretrained(saved).save_pretrained(tmp_path / "resaved")
    found = zoo.load(tmp_path / "resaved")
    assert found.spec.config["pipeline"] == "SnapGenPipeline"
    assert found.generate("a six", steps=2)[0].tobytes() == model.generate("a six", steps=2)[0].tobytes()


def test_a_changed_model_says_what_plain_diffusers_lacks(model: Model, tmp_path: Path):
    from zoo.model.context import Context
    from zoo.registry import compressor

    pruned = model.copy()
    prune = compressor("prune.structured")
    pruned.apply(prune, prune.Options(ffn=0.5, target="unet.mid"), Context())
    place = pruned.save(tmp_path / "pruned")
    assert not (place / "model_index.json").exists()
    assert (
        "unet.mid_block.attentions.0.transformer_blocks.0.ff" in json.loads((place / "zoo.json").read_text())["plain"]
    )


def test_samples_are_sheets_and_speed_is_in_images(model: Model):
    (sample,) = task_of(model).samples(model, ["a seven"], None)
    assert sample["prompt"] == "a seven"
    assert sample["image"].startswith("data:image/png;base64,")
    assert task_of(model).speeds(model, prefill=1, decode=1)["images_per_s"] > 0


def test_snapgen_is_where_diffusers_looks_for_a_pipeline():
    assert diffusers.SnapGenPipeline is SnapGenPipeline


def test_regions_cover_every_convolution_and_linear_layer(model: Model):
    from torch import nn

    anatomy = model.anatomy
    target = anatomy.select("all")
    covered = {*target.layers, *target.projections()}
    wanted = {path for path, part in model.module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert wanted == covered
    for name in (
        "unet",
        "unet.down",
        "unet.down.2",
        "unet.mid",
        "unet.up.0.1",
        "text_encoder",
        "decoder",
        "unet.mid.blocks[1:]",
    ):
        anatomy.select(name)
    assert [stack for stack in anatomy.stacks if stack.startswith("unet.up.0")] == ["unet.up.0.0", "unet.up.0.1"]
    assert pipelines.UNET["transformer_layers_per_block"] == [
        len(anatomy.stacks[f"unet.down.{i}"].blocks) for i in range(3)
    ]
