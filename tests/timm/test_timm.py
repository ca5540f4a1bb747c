"""timm's classifiers as models of ours: names, checkpoints, compression, and what timm itself says of the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from outsiders import install, python
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from zoo_compress import apply

import zoo
from zoo import catalog, registry
from zoo.cli.info import Knowledge
from zoo.data.dataset import Dataset, Sample
from zoo.errors import ArtifactError, DataError, Refused, RequestError, UnknownName, WeightsUnavailable
from zoo.family.task import task_of
from zoo.model.context import Context
from zoo.model.model import Model
from zoo.plugins import manager
from zoo.plugins.names import refresh
from zoo.testing import check_estimate, check_exact_reload, check_refuses, random_state_kept

VIT = "timm:vit_tiny_patch16_224?num_classes=10&img_size=32&patch_size=8&depth=4&embed_dim=48&num_heads=3"
RESNET = "timm:resnet10t?num_classes=10"
CONVNEXT = "timm:convnext_atto?num_classes=10&depths=[1,1,1,1]&dims=[8,16,24,32]"
TRAINING = {"steps": 2, "batch": 2, "warmup": 1}
PATCHES = {"convolutions": True, "group": 32, "method": "gptq", "samples": 8, "batch": 2}


def noise(count: int = 16, *, classes: int = 10, seed: int = 0) -> Dataset:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return Dataset(
        "noise",
        [
            Sample({"image": one, "label": i % classes, "text": str(i % classes)}, f"noise:{i}")
            for i, one in enumerate(images)
        ],
    )


def context(start: Model) -> Context:
    return Context(data={"train": noise(), "calibration": noise()}, load=lambda _: start.copy())


@pytest.fixture(scope="module")
def vit() -> Model:
    return zoo.load(VIT, weights="random")


@torch.no_grad()
def logits(model: Model, seed: int = 0) -> torch.Tensor:
    return model.family.forward(model, model.family.example(model, seed=seed))


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_beyond_the_catalogue_is_known_without_importing_timm():
    code = "import sys, zoo; s = zoo.info('timm:resnet18?num_classes=10&act=relu'); print(s.family, s.config, 'timm' in sys.modules)"
    assert python("-c", code).stdout == (
        "timm {'architecture': 'resnet18', 'model_args': {'num_classes': 10, 'act': 'relu'}} False\n"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:resnt18", "timm has no architecture 'resnt18'. Did you mean 'resnet18'?"),
        ("timm:resnet18.a9", "timm has no weights 'resnet18.a9'. Did you mean 'resnet18.a"),
        ("timm:", "'timm:' names no model: write timm:NAME, or timm:NAME?argument=value."),
        ("timm:../x", "'timm:../x' names no model"),
        ("timm:resnet18?x", "'x' is not of the form argument=value"),
        ("tim:resnet18", "No model named 'tim:resnet18'."),
    ],
)
def test_a_wrong_name_is_one_sentence(name: str, sentence: str):
    with pytest.raises(UnknownName) as caught:
        zoo.load(name, weights="random")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(RequestError, match=r"^timm cannot build resnet18 with foo = 3: .*'foo'\.$"):
        zoo.load("timm:resnet18?foo=3", weights="random")


def test_published_weights_are_asked_for_at_their_repository(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailable, match=r"timm/resnet18\.a1_in1k is not in the local hub cache"):
        zoo.load("timm:resnet18")


def test_info_says_what_loading_would_build_and_where_its_weights_are():
    plain = Knowledge.of("timm:resnet18").to_json()
    assert plain["params"] == zoo.load("timm:resnet18", weights="random").params
    assert plain["weights"] == "hub: timm/resnet18.a1_in1k" and plain["memory_bytes"]["fp32"] == 4 * plain["params"]
    ten = Knowledge.of("timm:resnet18?num_classes=10").to_json()
    assert ten["weights"] == "none published; weights='random' builds untrained ones"
    assert ten["params"] == plain["params"] - 990 * 513
    with pytest.raises(WeightsUnavailable, match=r"^timm:resnet18\?num_classes=10 has no published weights\."):
        zoo.load("timm:resnet18?num_classes=10")
    with pytest.raises(UnknownName, match="timm has no architecture 'resnt18'"):
        Knowledge.of("timm:resnt18")


def test_two_families_with_one_prefix_name_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = '[[family]]\nname = "mine"\nmodality = "x"\nsummary = "s"\nprefix = "timm"\n'
    install(tmp_path, "zzz_mine", registry=table, code="")
    monkeypatch.syspath_prepend(str(tmp_path))
    manager.refresh()
    try:
        assert (
            manager.find("zzz_mine").fault
            == "prefix 'timm' is already declared by plugin zoo_timm; zzz_mine's is reached as 'zzz_mine:timm'."
        )
        assert catalog.info("timm:resnet18").family == "timm"
    finally:
        monkeypatch.undo()
        refresh()


def test_imagenet_models_name_their_classes():
    model = zoo.load("timm:resnet18", device="meta")
    names = model.family.labels(model)
    assert (len(names), names[0], names[207]) == (1000, "tench, Tinca tinca", "golden retriever")
    assert model.spec.license == "apache-2.0"


# --- anatomy ----------------------------------------------------------------------------------------------------------

HEADED = [
    "vit_tiny_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_intern300m_patch14_448",
]


@pytest.mark.parametrize("name", HEADED)
def test_detected_heads_are_timms_own(name: str):
    model = zoo.load(f"timm:{name}", device="meta")
    stack = model.anatomy.stacks["vision"]
    assert len(stack.blocks) == len(model.module.blocks) and stack.width == model.module.embed_dim
    for block in stack.blocks:
        attention, own = block.attention, model.module.get_submodule(block.path)
        assert attention is not None and block.ffn is not None
        assert (attention.heads, attention.head_dim) == (own.attn.num_heads, own.attn.head_dim)
        assert attention.kv_heads == attention.heads and block.ffn.width == own.mlp.fc1.out_features
        offsets = [part.offset for part in (attention.q, attention.k, attention.v)]
        assert offsets == [0, stack.width, 2 * stack.width]  # timm reshapes to (3, heads, head_dim)


def test_convolutions_inside_blocks_are_in_a_region():
    """Twins' attention reads what a convolution made smaller."""
    anatomy = zoo.load("timm:twins_svt_small?num_classes=10", device="meta").anatomy
    paths = list(anatomy.select("all").layers)
    assert "blocks.0.1.attn.sr" in anatomy.layers["blocks.0"] and len(paths) == len(set(paths))
    assert not set(paths) & {path for block in anatomy.stack().blocks for path in block.projections()}


def test_every_other_layer_is_in_a_region():
    resnet = zoo.load(RESNET, device="meta")
    layers = resnet.anatomy.layers
    assert {"conv1.0", "layer1.0", "layer4.0", "fc"} <= set(layers)
    found = {path for paths in layers.values() for path in paths}
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    assert found == {path for path, part in resnet.module.named_modules() if isinstance(part, kinds)}
    padded = zoo.load("timm:tf_efficientnet_b0", device="meta")  # TensorFlow's padding is computed at each call
    listed = {path for paths in padded.anatomy.layers.values() for path in paths}
    assert "conv_stem" not in listed and "classifier" in listed


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 200), (37, 90), (224, 224), (8, 8)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_images_are_prepared_as_timm_prepares_them(name: str, size: tuple[int, int]):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    model = zoo.load(f"timm:{name}", device="meta")
    settings = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**settings, is_training=False)(image)
    assert torch.equal(model.family.preprocess(model, image), expected)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_a_strip_is_prepared_without_becoming_gigabytes(vit: Model, size: tuple[int, int]):
    strip = Image.new("RGB", size, "red")
    strip.putpixel((0, 0), (0, 0, 255))  # far from the middle: not seen
    pixels = vit.family.preprocess(vit, strip)
    assert pixels.shape == (3, 32, 32) and torch.allclose(pixels[:, :1, :1], pixels)


def test_a_model_of_one_channel_reads_grey():
    model = zoo.load(f"{VIT}&in_chans=1", weights="random")
    assert model.family.preprocess(model, Image.new("RGB", (9, 9), "white")).shape == (1, 32, 32)
    assert model.generate(images=[np.zeros((8, 8), np.uint8)], count=1).endswith(tuple("0123456789"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Checkpoint directories that timm wrote, with the modules they hold."""
    torch.manual_seed(0)
    made = {}
    small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    for name, arguments in (("vit_tiny_patch16_224", small), ("resnet10t", {})):
        path = tmp_path_factory.mktemp("timm") / name
        module = timm.create_model(name, num_classes=7, **arguments).eval()
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.add_(torch.rand(tensor.shape) / 10) if tensor.is_floating_point() else tensor
        save_for_hf(
            module,
            path,
            safe_serialization=True,
            model_args=arguments,
            model_config={"label_names": [f"kind {i}" for i in range(7)]},
        )
        made[name] = path, module
    return made


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_a_checkpoint_that_timm_wrote_gives_timms_outputs(
    name: str, theirs: dict[str, tuple[Path, Any]], tmp_path: Path
):
    path, module = theirs[name]
    model = zoo.load(path)
    batch = model.family.example(model)["images"]
    with torch.no_grad():
        assert torch.equal(model.family.forward(model, {"images": batch}), module(batch))
    assert model.family.labels(model)[6] == "kind 6" and model.spec.name == name
    again = zoo.load(model.save(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model)) and again.family.labels(again)[6] == "kind 6"
    reloaded = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(reloaded(batch), module(batch))


def test_half_precision_stays_as_it_is_stored(tmp_path: Path):
    module = timm.create_model("resnet10t", num_classes=3).bfloat16()
    save_for_hf(module, tmp_path, safe_serialization=True)
    assert (zoo.load(tmp_path).dtype, zoo.load(tmp_path, device="meta").dtype) == ("bfloat16", "bfloat16")
    model = zoo.load(tmp_path, dtype="float32")
    assert model.dtype == "float32" and logits(model).isfinite().all()
    assert model.generate(images=[np.zeros((8, 8), np.uint8)])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda p: (p / "model.safetensors").unlink(),
            "holds no model.safetensors; pickled weights and other formats are not read.",
        ),
        (
            lambda p: (p / "config.json").write_text('{"architecture": "resnet10t", "model_args": 3}'),
            "is not a timm config",
        ),
        (
            lambda p: (p / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 5}'),
            "'fc.weight' has shape (7, 512), the model expects (5, 512)",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 100), "is damaged"),
        (
            lambda p: save_file(
                {n: (t * 99).to(torch.int8) for n, t in load_file(p / "model.safetensors").items()},
                p / "model.safetensors",
            ),
            "is of I8, the codes of a quantizer that no config there names",
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    theirs: dict[str, tuple[Path, Any]], tmp_path: Path, damage: Any, sentence: str
):
    for file in theirs["resnet10t"][0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    for device in (None, "meta"):
        with pytest.raises(ArtifactError) as caught:
            zoo.load(tmp_path, device=device)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_weights_of_a_name_must_fit_it(theirs: dict[str, tuple[Path, Any]]):
    path, module = theirs["resnet10t"]
    model = zoo.load("timm:resnet10t?num_classes=7", weights=path)
    assert model.spec.name == "timm:resnet10t?num_classes=7" and torch.equal(model.module.fc.weight, module.fc.weight)
    with pytest.raises(ArtifactError, match=r"does not hold timm:resnet10t: fc\.bias is \(7,\) there"):
        zoo.load("timm:resnet10t", weights=path)


# --- compression ------------------------------------------------------------------------------------------------------

CUT = ("prune.structured", {"target": "vision", "ffn": 0.25, "heads": 1})
CASES: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "vit: ffn and heads": (VIT, [CUT]),
    "vit: width": (VIT, [("prune.structured", {"target": "vision", "width": 24})]),
    "vit: blocks": (VIT, [("inherit", {"target": "vision", "layers": "every:2"})]),
    "vit: influential blocks": (VIT, [("inherit", {"target": "vision", "layers": "influence:2", "samples": 4})]),
    "vit: factors": (VIT, [("lowrank.svd", {"target": "vision", "ratio": 0.5, "samples": 4})]),
    "vit: chain": (
        VIT,
        [
            ("inherit", {"target": "vision", "layers": "first:3"}),
            CUT,
            ("share.ffn", {"target": "vision"}),
            ("distill", TRAINING),
            ("quantize.int8", {}),
        ],
    ),
    "resnet: channels": (RESNET, [("prune.structured", {"ratio": 0.5})]),
    "resnet: 4 bits": (RESNET, [("quantize.int4", {"convolutions": True, "group": 32})]),
    "resnet: 4 bits, calibrated": (RESNET, [("quantize.int4", PATCHES)]),
    "convnext: channels": (CONVNEXT, [("prune.structured", {"ratio": 0.5})]),
    "convnext: chain": (CONVNEXT, [("prune.structured", {"ratio": 0.25}), ("distill", TRAINING), ("quantize.nf4", {})]),
}


@pytest.fixture(scope="module")
def finished() -> Iterator[dict[str, Model]]:
    built: dict[str, Model] = {}
    for case, (name, stages) in CASES.items():
        start = model = zoo.load(name, weights="random")
        for use, options in stages:
            model = check_estimate(model, use, options, context(start))
        built[case] = model
    yield built


def test_convolutions_are_packed_by_the_patches_that_they_read():
    model = zoo.load(CONVNEXT, weights="random")
    kinds = {path: part for path, part in model.module.named_modules() if isinstance(part, torch.nn.Conv2d)}
    apply(model, "quantize.int4", PATCHES, context(model))
    record = model.lineage[-1].record
    for path, conv in kinds.items():
        grid, packed = record["grids"].get(path, {"bits": 8}), model.module.get_submodule(path)
        assert grid["bits"] == (8 if conv.weight[0].numel() % 32 else 4) and packed.zoo_bits == grid["bits"], path
        assert (path in record["layers"]) == (conv.groups == 1)  # outputs of a depthwise one read inputs of their own
        assert packed.dequantize().shape == conv.weight.shape
    told = {path: row for path, row in record["layers"].items() if path in kinds and record["grids"][path]["bits"] == 4}
    assert told and all(row["error"] < row["rounding_error"] and row["tokens"] > 8 for row in told.values())


def test_every_case_is_estimated_exactly_and_reloads_bit_identically(finished: dict[str, Model], tmp_path: Path):
    check_exact_reload([*finished.values()], tmp_path)


@pytest.mark.parametrize(
    "case", ["vit: ffn and heads", "vit: width", "vit: blocks", "resnet: channels", "convnext: channels"]
)
def test_pruning_makes_it_smaller_and_it_still_runs(case: str, finished: dict[str, Model]):
    start = zoo.load(CASES[case][0], device="meta")
    assert finished[case].params < 0.9 * start.params
    assert logits(finished[case]).shape == (2, 10) and logits(finished[case]).isfinite().all()


def test_removing_heads_and_channels_equals_zeroing_them(vit: Model):
    """The pruned model computes what the original does when what was removed contributes nothing."""
    start = vit.copy()
    with torch.no_grad():
        for block in start.module.blocks:
            block.mlp.fc2.weight[:, 100:] = block.mlp.fc1.weight[100:] = 0
            block.attn.proj.weight[:, 16:] = 0
            block.attn.qkv.weight[[*range(16, 48), *range(112, 144)]] = 0  # their queries and values
    pruned = check_estimate(start, "prune.structured", {"target": "vision", "ffn": 100, "heads": 1}, context(start))
    assert pruned.module.blocks[0].attn.num_heads == 1
    assert torch.allclose(logits(pruned), logits(start), atol=1e-6)


def test_what_timm_can_build_it_also_loads(finished: dict[str, Model], tmp_path: Path):
    """Fewer blocks and narrower FFNs are arguments of timm's; a head less is not, and the card says so."""
    start = zoo.load(VIT, weights="random")
    narrow = check_estimate(
        finished["vit: blocks"], "prune.structured", {"target": "vision", "ffn": 96}, context(start)
    )
    path = narrow.save(tmp_path / "narrow")
    plain = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    batch = narrow.family.example(narrow)["images"]
    with torch.no_grad():
        assert len(plain.blocks) == 2 and torch.equal(plain(batch), logits(narrow))
    other = finished["vit: ffn and heads"].save(tmp_path / "heads")
    said = json.loads((other / "zoo.json").read_text())["plain"]
    assert not (other / "config.json").exists() and "num_heads" in said
    assert "Plain timm loads this folder too." in (path / "README.md").read_text()
    assert f"Plain timm cannot load this folder: {said}." in (other / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "use", "options", "sentence"),
    [
        (
            RESNET,
            "inherit",
            {"target": "all", "layers": "first:1"},
            "inherit keeps or drops blocks, and 'all' has none",
        ),
        (RESNET, "share.ffn", {"target": "all"}, "share.ffn"),
        (RESNET, "prune.structured", {"ffn": 0.5}, "give ratio instead of ffn"),
        (
            VIT,
            "inherit",
            {"layers": "first:1"},
            "No part of the model is called 'language'. Parts: vision, patch_embed, head",
        ),
        (VIT, "vocabulary.bpe", {}, "(vision) has no token vocabulary"),
    ],
)
def test_what_does_not_apply_is_refused(name: str, use: str, options: dict[str, Any], sentence: str):
    start = zoo.load(name, weights="random")
    assert sentence in check_refuses(start, use, options, context(start))


# --- random weights ---------------------------------------------------------------------------------------------------


def test_random_weights_are_timms_own_initialisation(vit: Model):
    with random_state_kept("loading"):
        again = zoo.load(VIT, weights="random")
    assert torch.equal(logits(again), logits(vit))
    assert (
        abs(float(vit.module.blocks[0].attn.qkv.weight.detach().std()) - 0.02) < 0.002
        and not vit.module.head.bias.any()
    )
    assert float(vit.module.blocks[0].norm1.weight.detach().min()) == 1


@pytest.mark.parametrize("case", ["resnet: channels", "convnext: channels", "vit: chain", "vit: factors", "vit: width"])
def test_a_compressed_architecture_is_drawn_anew(case: str, finished: dict[str, Model]):
    """What a control trains from: the lineage's shapes, no value of the weights it was made of."""
    from zoo.model.model import build_random

    done = finished[case]
    lineage = tuple(stage for stage in done.lineage if not stage.use.startswith("quantize"))
    drawn = build_random(done.family, done.spec, lineage=lineage)
    assert logits(drawn).isfinite().all() and torch.equal(
        logits(drawn), logits(build_random(done.family, done.spec, lineage=lineage))
    )
    sizes = {
        name: float(tensor.detach().float().std())
        for name, tensor in drawn.tensors().items()
        if tensor.dim() == 4 and tensor.numel() > 100
    }
    assert all(0.001 < size < 1 for size in sizes.values()), sizes


# --- data and training ------------------------------------------------------------------------------------------------


def test_records_become_labelled_images(vit: Model):
    items = vit.family.windows(vit, noise(), length=99)
    assert len(items) == 16 and items[3]["images"].shape == (3, 32, 32) and int(items[3]["labels"]) == 3
    batch = vit.family.collate(vit, [items[i] for i in (1, 2)])
    rows = vit.family.rows(vit, batch, ["label"])["label"]
    assert rows.target is not None and rows.target.tolist() == [1, 2] and rows.sample.tolist() == [0, 1]
    assert torch.equal(rows.head(rows.hidden), vit.family.forward(vit, batch))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text": "3"}, "x:1: no field 'image'; timm:vit_tiny"),
        ({"image": 0, "label": 10}, "x:1: label 10 is none of the classes 0 to 9."),
        ({"image": 0, "label": -1}, "x:1: label -1"),
        ({"image": 0, "text": "cat"}, "x:1: 'cat' is none of the 10 classes."),
        ({"image": 0, "label": 1.5}, "x:1: label 1.5"),
    ],
)
def test_a_wrong_record_is_named(vit: Model, fields: dict[str, Any], sentence: str):
    with pytest.raises(DataError) as caught:
        vit.family.windows(vit, Dataset("x", [Sample({"text": "", **fields}, "x:1")]), length=1)
    assert str(caught.value).startswith(sentence)


def test_teachers_must_know_the_same_classes(vit: Model):
    other = zoo.load(VIT.replace("num_classes=10", "num_classes=3"), weights="random")
    assert vit.family.comparable(vit, vit) == ""
    assert "10 classes and 3" in vit.family.comparable(vit, other)
    with pytest.raises(Refused, match="10 classes and 3"):
        vit.copy().apply(
            registry.compressor("distill"),
            registry.compressor("distill").Options(**TRAINING),
            Context(data={"train": noise()}, load=lambda _: other),
        )


def test_training_learns_to_tell_two_colours():
    """Cross-entropy as it is: 40 steps take a random ViT from chance to certainty; kl then moves it to a teacher."""
    start = zoo.load(VIT.replace("num_classes=10", "num_classes=2"), weights="random")
    draw = np.random.default_rng(0)
    images = [
        np.clip(draw.normal((60, 60, 200) if i % 2 else (200, 60, 60), 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        for i in range(64)
    ]
    data = Dataset(
        "colours", [Sample({"image": one, "label": i % 2, "text": "x"}, f"c:{i}") for i, one in enumerate(images)]
    )
    model, curves = start.copy(), Context(data={"train": data})
    compressor = registry.compressor("train")
    model.apply(compressor, compressor.Options(steps=40, batch=8, lr=1e-3), curves)
    before, after = (registry.evaluator("accuracy").measure(m, data, options={})["accuracy"] for m in (start, model))
    assert before["value"] < 75 and after["value"] > 95
    student, taught = start.copy(), Context(data={"train": data}, load=lambda _: model)
    distill = registry.compressor("distill")
    student.apply(distill, distill.Options(steps=40, batch=8, lr=1e-3, teacher="x"), taught)
    (_, first), (_, last) = taught.curves["kl"][0], taught.curves["kl"][-1]
    assert last < first / 3


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_likeliest_classes_are_the_answer(vit: Model, tmp_path: Path):
    image = Image.fromarray(noise(1)[0].fields["image"])
    image.save(tmp_path / "x.png")
    with torch.no_grad():
        chances = vit.module(vit.family.preprocess(vit, image)[None])[0].softmax(-1)
    best = chances.topk(3)
    lines = [f"{100 * p:5.1f} %  {i}" for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    assert vit.generate(images=[tmp_path / "x.png"], count=3) == "\n".join(lines)
    assert vit.generate(image, count=3) == "\n".join(lines)
    pieces = list(vit.generate(images=[image, tmp_path / "x.png"], count=3, stream=True))
    assert len(pieces) == 2 and pieces[0] == pieces[1].strip("\n")
    assert len(vit.generate(images=[image]).splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "classifies images, and there is none"),
        ({"images": []}, "classifies images, and there is none"),
        ({"images": ["no.png"]}, "no.png does not exist"),
        ({"images": [np.zeros((2, 2), np.uint8)], "temperature": 1}, "'temperature' is not an option"),
        ({"images": [np.zeros((2, 2), np.uint8)], "count": 0}, "count = 0"),
    ],
)
def test_a_wrong_request_is_one_sentence(vit: Model, options: dict[str, Any], sentence: str):
    with pytest.raises(RequestError, match=sentence):
        vit.generate(**options)


def test_samples_show_the_image_the_answer_and_what_was_expected(vit: Model):
    samples = task_of(vit).samples(vit, [], noise())
    assert len(samples) == 8 and {"prompt", "image", "output", "expected"} <= set(samples[0])
    assert samples[1]["expected"] == "2" and samples[1]["image"].startswith("data:image/png;base64,")
    assert task_of(vit).samples(vit, [], None) == []


def test_features_without_classes_say_what_to_ask_for():
    model = zoo.load("timm:vit_tiny_patch16_224?num_classes=0&img_size=32&depth=1", weights="random")
    assert logits(model).shape == (2, 192)
    with pytest.raises(RequestError, match=r"has no classes, only features\. Give it some"):
        registry.evaluator("accuracy").check(model, noise())


def test_speed_is_images_a_second(vit: Model):
    assert task_of(vit).speeds(vit, prefill=1, decode=1)["images_per_s"] > 0


def test_a_packed_model_in_half_precision_is_fed_in_its_own(tmp_path: Path) -> None:
    """Its first layer is packed, and the batch norm behind it stays in float32."""
    model = zoo.load("timm:cpubone_nano?num_classes=4", weights="random", dtype="bfloat16")
    model.apply(registry.compressor("quantize.int8"), registry.compressor("quantize.int8").Options(), Context())
    assert model.family.forward(model, model.family.example(model, batch=1)).isfinite().all()


def test_training_forgets_what_was_computed_of_parameters_that_moved() -> None:
    """LeViT keeps its attention biases of the first pass, which outside training it would use for good."""
    model = zoo.load("timm:levit_128s?num_classes=4", weights="random", dtype="float32")
    batch = model.family.example(model, batch=1)
    with torch.no_grad():
        model.family.forward(model, batch)
        for name, parameter in model.module.named_parameters():
            if name.endswith("attention_biases"):
                parameter.add_(1.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(model.family.forward(model, batch), model.copy().family.forward(model.copy(), batch))
    for _ in range(2):  # the graph of the first pass is gone in the second
        model.family.rows(model, batch, ["label"])["label"].hidden.sum().backward()
