"""The cases of the contract tests: models to start from, options for every compressor, chains of stages."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sentences import DENSE, plain_folder, sentence_folder
from snapgen.pipelines import awake, stable_diffusion
from stages import tokenizer
from twins import VOCABULARY, twin

import zoo
from zoo import registry
from zoo.data.dataset import Dataset, Sample
from zoo.loading import weights
from zoo.model.context import Context
from zoo.model.model import Model

Stage = tuple[str, dict[str, Any]]

TINY = "tiny-code"
FOUR = {"num_hidden_layers": 4}  # so that there is something to keep, share and select
# name -> (twin, its changes)
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", FOUR),
    "llama-tied": ("llama-tied", FOUR),
    "gpt-neox": ("gpt-neox", FOUR),
    "opt": ("opt", FOUR),
    "bert": ("bert", FOUR),
    "mixtral": ("mixtral", FOUR),
    "phi3": ("phi3", FOUR),
    "gpt2": ("gpt2", {"n_layer": 4}),
}
# The architectures of the catalogue that are none of these, each at test size: base -> the name in the catalogue. They are
# not taken as loaded: tests/slm/test_catalogue_twins.py saves and reloads them.
SHRUNK: dict[str, str] = {
    f"{name}, tiny": name
    for name in (
        "orca-math-7b",
        "qwen2.5-0.5b",
        "gemma-2b",
        "gemma-2-2b",
        "phi-2",
        "starcoder2-3b",
        "olmo-1b",
        "flan-t5-small",
        "mobillama-0.5b",
        "phonelm-0.5b",
        "minicpm-1b",
        "minicpm-moe-8x2b",
        "tele-flm-52b",
        "phi-3-small-8k-instruct",
        "slimlm-125m",
        "stlm-ffn-sharing",
        "stlm-byte-level",
        "bebeshka",
    )
}
MISSISSIPPI = "h2ovl-mississippi-2b, tiny"
# The other modalities: name -> what `zoo.load` takes; a pipeline directory is made by diffusers.
IMAGES: dict[str, str] = {
    "tiny-vlm": "tiny-vlm",
    MISSISSIPPI: "h2ovl-mississippi-2b",
    "tiny-t2i": "tiny-t2i",
    "stable-diffusion": "",
    "vit": "timm:vit_tiny_patch16_224?num_classes=10&img_size=32&depth=4",
    "resnet": "timm:resnet10t?num_classes=10",
    "vit, vectors": "timm:vit_tiny_patch16_224?num_classes=0&img_size=32&depth=4",
}
# Encoders of sentences, as sentence-transformers and transformers save them: name -> what makes the folder.
SENTENCES: dict[str, Any] = {
    "sentence encoder": partial(sentence_folder, after=[DENSE, None]),
    "bert, vectors": plain_folder,
}
VECTORS = (*SENTENCES, "vit, vectors")
RANDOM = "tiny-code, random"  # what a tokenizer may still be trained for
BASES = (TINY, *TWINS, *SHRUNK, *IMAGES, *SENTENCES)
# Where a stage aims in a model that has no language, and sizes that fit it.
TARGETS = {"tiny-t2i": "unet", "stable-diffusion": "unet", "vit": "vision", "resnet": "all", "vit, vectors": "vision"}

# What every compressor is run with; a compressor without a row fails a test.
TRAINING: dict[str, Any] = {"steps": 2, "batch": 2, "length": 16, "warmup": 1}
CALIBRATION: dict[str, Any] = {"samples": 4, "length": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "inherit": {"layers": "every:2"},
    "prune.magnitude": {"sparsity": 0.5},
    "prune.wanda": {"pattern": "2:4", **CALIBRATION},
    "prune.sparsegpt": {"sparsity": 0.5, **CALIBRATION},
    "prune.structured": {"ffn": 0.25, "heads": 0.5, **CALIBRATION},
    "quantize.int4": CALIBRATION,
    "quantize.int8": {},
    "quantize.nf4": {},
    "share.ffn": {},
    "lowrank.svd": {"ratio": 0.5, **CALIBRATION},
    "distill": TRAINING,
    "train": TRAINING,
    "vocabulary.bpe": {},
}

# (base, compressor) -> the options that differ there: what has to fit the modality.
SEES = {"length": 64}  # a question with its image is longer than a sentence
DIFFERENT: dict[tuple[str, str], dict[str, Any]] = {
    **{
        (name, use): {**OPTIONS[use], **SEES}
        for name in ("tiny-vlm", MISSISSIPPI)
        for use in (
            "prune.wanda",
            "prune.sparsegpt",
            "prune.structured",
            "lowrank.svd",
            "quantize.int4",
            "distill",
            "train",
        )
    },
    **{(name, "inherit"): {"layers": "first:1"} for name in ("tiny-t2i", "stable-diffusion")},
    **{(name, "prune.structured"): {"ffn": 0.25, **CALIBRATION} for name in ("tiny-t2i", "stable-diffusion")},
    ("resnet", "prune.structured"): {"ratio": 0.25},
    # what a head sees, or how far, is fixed by its number
    **{
        (f"{name}, tiny", "prune.structured"): {"ffn": 0.25, **CALIBRATION}
        for name in ("phi-3-small-8k-instruct", "flan-t5-small")
    },
}

# (base, compressor) -> the sentence with which it refuses. Everything else applies.
REFUSED: dict[tuple[str, str], str] = {
    **{
        (name, "share.ffn"): r"holds 4 experts .* experts are not shared between blocks"
        for name in ("mixtral", "minicpm-moe-8x2b, tiny")
    },
    (TINY, "vocabulary.bpe"): r"the weights of tiny-code are trained on the tokens .* Begin with weights = \"random\"",
    **{
        (f"{name}, tiny", "share.ffn"): r"model\.layers\.1\.mlp\.gate_proj already is model\.layers\.0\.mlp\.gate_proj"
        for name in ("mobillama-0.5b", "stlm-ffn-sharing")
    },
    **{(name, "vocabulary.bpe"): rf"{name} has 96 tokens.* choose a model with a larger vocab_size" for name in TWINS},
    **{(name, "vocabulary.bpe"): "has no token vocabulary that could be learnt anew" for name in IMAGES},
    **{(name, "train"): r"has no loss of its own for embedding models.* use = \"distill\"" for name in VECTORS},
    **{(name, "vocabulary.bpe"): r"has 96 tokens.* choose a model with a larger vocab_size" for name in SENTENCES},
    ("stable-diffusion", "share.ffn"): "'unet' is 4 stacks of one block, and sharing takes two of one stack",
    ("resnet", "inherit"): "inherit keeps or drops blocks, and 'all' has none",
    ("resnet", "share.ffn"): "'all' has no block, and sharing takes two of one stack",
}


def options(base: str, use: str) -> dict[str, Any]:
    """What a compressor is run with on a base."""
    own = DIFFERENT.get((base, use), OPTIONS[use])
    aims = base in TARGETS and "target" in registry.compressor(use).Options.model_fields
    return {**own, **({"target": TARGETS[base]} if aims else {})}


def stage(use: str, **changes: Any) -> Stage:
    """A stage with the options of the table, some of them changed."""
    return use, {**OPTIONS[use], **changes}


INHERIT, MAGNITUDE, STRUCTURED, SHARE, LOWRANK = (
    stage(use) for use in ("inherit", "prune.magnitude", "prune.structured", "share.ffn", "lowrank.svd")
)
INT8, NF4, DISTILL, TRAIN = (stage(use) for use in ("quantize.int8", "quantize.nf4", "distill", "train"))
HEADS = ("prune.structured", {"heads": 0.5, **CALIBRATION})
WIDTH = ("prune.structured", {"width": 24, **CALIBRATION})

# Options beside those of the table, alone and in a row: (the bases, the stages).
CHAINS: list[tuple[tuple[str, ...], list[Stage]]] = [
    ((TINY, "qwen3", "gpt-neox", "opt", "bert"), [stage("inherit", layers="first:3"), STRUCTURED, INT8]),
    (("qwen3", "gpt-neox", "gpt2"), [SHARE, NF4]),
    ((TINY, "llama-tied", "opt", "phi3"), [LOWRANK, INT8]),
    (("qwen3", "bert", "phi3"), [MAGNITUDE, INT8]),
    (("qwen3", "gpt2"), [MAGNITUDE, stage("quantize.int4", embedding=True, group=32, symmetric=True)]),
    (
        ("llama-tied", "phi3"),
        [SHARE, stage("quantize.int4", overrides=[{"pattern": "*.down_proj", "bits": 8, "group": 32}])],
    ),
    ((TINY, "llama-tied", "gpt-neox"), [stage("inherit", layers=[0, 2, 3]), SHARE, DISTILL]),
    (("qwen3", "opt", "bert", "mixtral", "phi3"), [HEADS, INHERIT]),
    (("qwen3", "gpt-neox", "opt", "bert", "phi3"), [HEADS, INHERIT, INT8]),
    (("llama-tied", "gpt-neox", "bert"), [INT8, stage("inherit", layers="last:2")]),
    ((TINY, "llama-tied", "gpt2", "mixtral"), [MAGNITUDE, DISTILL]),
    (("llama-tied", "opt", "bert", "gpt2"), [WIDTH, INT8]),  # all of these have tied tables
    (("llama-tied", "gpt-neox"), [WIDTH, stage("quantize.nf4", embedding=True, nested=True)]),
    (("qwen3", "opt"), [SHARE, STRUCTURED, INT8]),
    (("llama-tied", "gpt-neox"), [SHARE, stage("inherit", layers="last:2"), LOWRANK]),
    (
        ("qwen3", "phi3"),
        [stage("prune.magnitude", sparsity=None, pattern="2:4"), stage("inherit", layers=[0, 3]), INT8],
    ),
    (
        ("llama-tied", "gpt-neox"),
        [stage("quantize.int8", target="language.blocks[2:]"), stage("inherit", layers="first:2"), STRUCTURED],
    ),
    (
        ("qwen3", "opt"),
        [stage("prune.structured", target="language.blocks[1:]"), stage("inherit", layers="last:3"), NF4],
    ),
    (
        ("llama-tied", "bert"),
        [stage("lowrank.svd", target="language.attention"), ("prune.structured", {"ffn": 40, **CALIBRATION})],
    ),
    # an even rank: two 4-bit weights share a byte
    (
        ("llama-tied", "gpt2"),
        [stage("lowrank.svd", ratio=None, rank=6, whiten=False), stage("inherit", layers="first:2"), NF4],
    ),
    ((TINY, "opt"), [DISTILL, STRUCTURED, TRAIN]),
    (("qwen3",), [stage("quantize.nf4", target="language.ffn"), stage("quantize.int8", target="language.attention")]),
    (("mixtral",), [stage("quantize.int8", skip=["*.experts.*"])]),
    (
        ("mixtral",),
        [stage("prune.structured", kv_groups=0.5, width=24), stage("lowrank.svd", target="language.attention")],
    ),
    (("llama-tied",), [("prune.structured", {"ffn": 0.5, "importance": "activation", **CALIBRATION}), SHARE]),
    (("qwen3",), [stage("inherit", layers="influence:2", **CALIBRATION), LOWRANK]),
    # sizes that transformers' own configs do not take: no multiple of the heads, heads that do not divide the width
    ((TINY,), [("prune.structured", {"width": 0.3, **CALIBRATION}), INT8]),
    (("llama-tied", "gpt-neox"), [("prune.structured", {"width": 25, **CALIBRATION})]),
    (("gpt-neox", "opt", "bert"), [("prune.structured", {"heads": 3, **CALIBRATION})]),
    ((RANDOM,), [stage("vocabulary.bpe"), TRAIN]),
    # vision-language: each part for itself, and all three together
    (
        ("tiny-vlm", MISSISSIPPI),
        [
            stage("inherit", target="vision", layers="first:2"),
            ("prune.structured", {"ffn": 0.25, **CALIBRATION, **SEES}),
            INT8,
        ],
    ),
    (
        ("tiny-vlm",),
        [
            ("prune.structured", {"ratio": 0.25, "target": "vision"}),
            stage("lowrank.svd", target="projector", **SEES),
            INT8,
        ],
    ),
    (
        ("tiny-vlm",),
        [
            stage("share.ffn", target="vision"),
            (
                "distill",
                {
                    **TRAINING,
                    **SEES,
                    "loss": [
                        {"use": "kl"},
                        {"use": "visual-kl"},
                        {"use": "visual-relation"},
                        {"use": "hidden", "target": "vision"},
                    ],
                },
            ),
            stage("quantize.nf4", target="language"),
        ],
    ),
    (
        ("tiny-vlm",),
        [
            ("prune.structured", {"heads": 0.5, "target": "vision", **CALIBRATION, **SEES}),
            ("train", {**TRAINING, **SEES, "only": ["projector"]}),
        ],
    ),
    # text-to-image: the denoiser, the text encoder and the decoder
    (
        ("tiny-t2i", "stable-diffusion"),
        [
            ("prune.structured", {"ratio": 0.25, "target": "unet"}),
            ("prune.structured", {"ffn": 0.25, "target": "text_encoder", **CALIBRATION}),
            INT8,
        ],
    ),
    (
        ("tiny-t2i",),
        [
            stage("share.ffn", target="unet.mid"),
            stage("distill", loss=[{"use": "timestep-aware"}, {"use": "hidden", "target": "unet.mid"}]),
            stage("quantize.int8", target="unet"),
        ],
    ),
    (
        ("tiny-t2i",),
        [
            stage("inherit", target="unet.mid", layers="first:1"),
            ("prune.structured", {"ffn": 0.5, "target": "unet.down", **CALIBRATION}),
            stage("quantize.nf4", target="unet"),
        ],
    ),
    (
        ("tiny-t2i",),
        [stage("train", only=["decoder"], loss=[{"use": "reconstruction"}]), stage("quantize.int8", target="decoder")],
    ),
    (
        ("stable-diffusion",),
        [stage("prune.magnitude", target="unet"), stage("distill", loss=[{"use": "velocity-kd"}]), INT8],
    ),
    (("stable-diffusion",), [stage("lowrank.svd", target="text_encoder"), stage("quantize.int8", target="vae")]),
    # vision
    (
        ("vit",),
        [
            ("prune.structured", {"ffn": 0.25, "heads": 1, "target": "vision", **CALIBRATION}),
            stage("inherit", target="vision", layers="every:2"),
            INT8,
        ],
    ),
    (
        ("vit",),
        [("prune.structured", {"ratio": 0.25, "target": "vision"}), stage("share.ffn", target="vision"), DISTILL],
    ),
    (("resnet",), [("prune.structured", {"ratio": 0.25, "target": "all"}), DISTILL, INT8]),
    # vectors: calibrated and taught without labels, also to a student of another width
    (
        tuple(SENTENCES),
        [
            stage("inherit", layers="influence:3", **CALIBRATION),
            ("prune.structured", {"ffn": 0.25, "heads": 0.5, "importance": "activation", **CALIBRATION}),
            DISTILL,
            INT8,
        ],
    ),
    (("bert, vectors",), [WIDTH, stage("distill", loss=[{"use": "rkd"}, {"use": "hidden"}]), stage("quantize.nf4")]),
    (
        ("vit, vectors",),
        [
            ("prune.structured", {"width": 96, "target": "vision", **CALIBRATION}),
            stage("distill", loss=[{"use": "rkd"}]),
            INT8,
        ],
    ),
]

# case id -> (base, stages)
CASES: dict[str, tuple[str, list[Stage]]] = {
    **{f"{b}: as loaded": (b, []) for b in BASES if b not in SHRUNK},
    **{f"{b}: {use}": (b, [(use, options(b, use))]) for b in BASES for use in OPTIONS if (b, use) not in REFUSED},
    **{
        f"{base}: chain {i}, {' > '.join(use for use, _ in stages)}": (base, stages)
        for i, (bases, stages) in enumerate(CHAINS)
        for base in bases
    },
}


def base(name: str, folder: Path) -> Model:
    """The catalogue's tiny model, or a twin as anybody's checkpoint directory: saved by transformers, loaded by zoo."""
    if name in TWINS:
        return zoo.load(checkpoint(name, folder))
    if name in SHRUNK:
        model = awake(zoo.load(SHRUNK[name], scale="tiny", weights="random"))
        model.processor = zoo.load(TINY).processor if model.spec.family == "bytes" else tokenizer_for(model.spec.task)
        return model
    if name == RANDOM:
        return zoo.load(TINY, weights="random")
    if name == "stable-diffusion":
        return zoo.load(stable_diffusion(folder / name))
    if name in SENTENCES:
        place = folder / name
        return zoo.load(place if place.exists() else SENTENCES[name](place))
    known, scale = IMAGES.get(name, name), "tiny" if name.endswith(", tiny") else None
    packaged = not scale and weights.packaged_at(zoo.info(known))
    return zoo.load(known) if packaged else awake(zoo.load(known, weights="random", scale=scale))


def checkpoint(name: str, folder: Path) -> Path:
    """A twin saved by transformers, with a tokenizer of whole words beside it, so that it can be trained on text."""
    place = folder / name
    if not place.exists():
        kind, changes = TWINS[name]
        twin(kind, **changes).save_pretrained(place)  # type: ignore[operator]
        tokenizer_for("masked-lm" if kind == "bert" else "causal-lm").save_pretrained(place)
    return place


def tokenizer_for(task: str) -> Any:
    """The tokenizer of whole words, the last of which hides others where a model fills in what is hidden."""
    made = tokenizer()
    if task == "masked-lm":
        made.mask_token = f"w{VOCABULARY - 1}"
    return made


def words(*, count: int = 1500, seed: int = 0) -> str:
    """Random words, which the twins' tokenizer knows and any other splits."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(count))


def context(original: Model) -> Context:
    """What stages may use: a little text, or pictures with texts, and the model they began with as the teacher."""
    data = Dataset("words", [Sample({"text": words(seed=seed)}, f"words:{seed}") for seed in range(2)])
    if original.spec.task == "embedding":
        short = [words(count=3 + i, seed=i) for i in range(8)]
        data = Dataset("sentences", [Sample({"text": text}, f"sentences:{i}") for i, text in enumerate(short)])
    if original.spec.modality != "text":
        draw = np.random.default_rng(0)
        pictures = [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(8)]
        data = Dataset(
            "pictures",
            [
                Sample({"image": picture, "prompt": "What digit is this?", "text": str(i), "label": i}, f"pictures:{i}")
                for i, picture in enumerate(pictures)
            ],
        )
    return Context(data={"train": data, "calibration": data}, load=lambda _: original.copy())


def recipe(model: str | Path, stages: list[Stage], folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """The same as a recipe: no evaluation, and the words in a file."""
    text = folder / "words.txt"
    text.write_text(words())
    return {
        "recipe": {"name": "case", "seed": seed},
        "model": {"name": str(model)},
        "data": {"train": str(text), "calibration": str(text)},
        "stage": [{"use": use, **options} for use, options in stages],
        "evaluate": {"tasks": [], "speed": False},
    }
