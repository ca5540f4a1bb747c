"""Pipelines that are not plain text to image, or whose config leaves something open: every step must work or say why not in one sentence."""

import os
import sys
import tempfile
import warnings

warnings.simplefilter("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path

import diffusers as D
import numpy as np
import torch
import transformers as T
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from zoo_compress import apply

import zoo
from zoo.data.open import open_data
from zoo.errors import ZooError
from zoo.tensors.batch import generators

D.utils.logging.set_verbosity_error()
torch.set_num_threads(1)
root = Path(tempfile.mkdtemp())
bad = []
(root / "pics" / "a cat").mkdir(parents=True)
for i in range(3):
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
        root / "pics" / "a cat" / f"{i}.png"
    )


def make(name, cls, inputs=4, longest=16, sample=8):
    torch.manual_seed(0)
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel()
    t.train_from_iterator(
        ["x"],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "<e>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok = T.PreTrainedTokenizerFast(
        tokenizer_object=t,
        bos_token="<s>",
        eos_token="<e>",
        pad_token="<e>",
        **({"model_max_length": longest} if longest else {}),
    )
    unet = D.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=sample,
        in_channels=inputs,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = D.AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    text = T.CLIPTextModel(
        T.CLIPTextConfig(
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            vocab_size=400,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    cls(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        scheduler=D.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / name)
    return root / name


def rows(place):
    z = zoo.load(place)
    f = z.family
    w = f.windows(z, open_data(str(root / "pics")), length=8)
    return tuple(
        f.rows(z, f.draw(z, f.collate(z, [w[0], w[1]]), generators(0, range(2))), ("velocity",))[
            "velocity"
        ].hidden.shape
    )


for name, options in {
    "plain": (D.StableDiffusionPipeline,),
    "inpaint, 9 input channels": (D.StableDiffusionInpaintPipeline, 9),
    "image to image": (D.StableDiffusionImg2ImgPipeline,),
    "tokenizer without model_max_length": (D.StableDiffusionPipeline, 4, None),
    "sample_size = [8, 12]": (D.StableDiffusionPipeline, 4, 16, [8, 12]),
    "sample_size = null": (D.StableDiffusionPipeline, 4, 16, None),
}.items():
    place = make(name.split(",")[0].replace(" ", "-"), *options)
    for what, do in {
        "generate": lambda: zoo.load(place).generate("a cat", steps=2, seed=0)[0].size,
        "one training batch": lambda: rows(place),
        "prune.structured ratio": lambda: (
            apply(zoo.load(place), "prune.structured", {"target": "unet", "ratio": 0.25}).params
        ),
    }.items():
        try:
            print(f"right {name}: {what}: {do()}")
        except ZooError as error:
            print(f"right {name}: {what} refused: {str(error)[:110]}")
        except Exception as error:
            bad.append(name)
            print(f"WRONG {name}: {what}: {type(error).__name__}: {str(error)[:100]}")
print("FAILS" if bad else "fine", sorted(set(bad)))
sys.exit(bool(bad))
