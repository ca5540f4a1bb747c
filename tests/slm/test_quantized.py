"""Checkpoints of codes: refused by what made them, or widened to plain weights where somebody asks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from outsiders import zoo as command
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, texts, tokenizer

import zoo
from zoo.errors import ArtifactError, RequestError, ZooError

LARGEST_FP8 = 448.0
# of mxfp4: what each code of four bits stands for (OCP Microscaling Formats 1.0, section 5.3.3)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-value for value in E2M1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("plain") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def written(folder: Path, of: Path, tensors: dict[str, torch.Tensor], quantizer: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((of / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantizer}))
    tokenizer().save_pretrained(folder)
    return folder


def fp8(folder: Path, of: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of blocks of 128 by 128, as DeepSeek-V3's, and what its codes stand for."""
    codes, values = {}, {}
    for name, weight in load_file(of / "model.safetensors").items():
        codes[name] = values[name] = weight
        if "proj" in name:
            rows, columns = (size // 128 for size in weight.shape)
            blocks = weight.float().view(rows, 128, columns, 128)
            scale = blocks.abs().amax((1, 3)) / LARGEST_FP8
            eighths = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            codes[name], codes[name.replace("weight", "weight_scale_inv")] = eighths.view(weight.shape), scale
            values[name] = (eighths.float() * scale[:, None, :, None]).view(weight.shape).to(weight.dtype)
    quantizer = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return written(folder, of, codes, quantizer), values


def mxfp4(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small gpt-oss whose experts are codes, as it is published."""
    import transformers

    of = folder.parent / "oss"
    config = transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
    )
    transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(of)
    draw, codes, values = torch.Generator().manual_seed(0), {}, {}
    for name, weight in load_file(of / "model.safetensors").items():
        codes[name] = values[name] = weight
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, read, wrote = codes.pop(name).shape
            blocks = torch.randint(0, 256, (experts, wrote, read // 32, 16), dtype=torch.uint8, generator=draw)
            scales = torch.randint(118, 124, (experts, wrote, read // 32), dtype=torch.uint8, generator=draw)
            codes[f"{name}_blocks"], codes[f"{name}_scales"] = blocks, scales
            nibbles = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()  # the low one first
            numbers = torch.tensor(E2M1)[nibbles] * 2.0 ** (scales.float() - 127)[..., None]
            values[name] = numbers.flatten(2).transpose(1, 2).to(torch.bfloat16)
    return written(folder, of, codes, {"quant_method": "mxfp4"}), values


def mxfp8(folder: Path, of: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Blocks of 32 in a row, whose scales are powers of two."""
    codes, values = {}, {}
    for name, weight in load_file(of / "model.safetensors").items():
        codes[name] = values[name] = weight
        if "proj" in name:
            blocks = weight.float().view(len(weight), -1, 32)
            power = torch.ceil(torch.log2(blocks.abs().amax(-1) / LARGEST_FP8))
            eighths = (blocks / 2 ** power[..., None]).to(torch.float8_e4m3fn)
            codes[name] = eighths.view(weight.shape)
            codes[name.replace("weight", "weight_scale_inv")] = (power + 127).to(torch.uint8)
            values[name] = (eighths.float() * 2 ** power[..., None]).view(weight.shape).to(weight.dtype)
    quantizer = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "activation_scheme": "dynamic"}
    return written(folder, of, codes, quantizer), values


def metal(folder: Path, of: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Eight numbers of four bits to a word, the first one lowest, and a scale and a smallest number for 64 of them."""
    draw, codes, values = torch.Generator().manual_seed(0), {}, {}
    for name, weight in load_file(of / "model.safetensors").items():
        codes[name] = values[name] = weight
        if "proj" in name:
            numbers = torch.randint(0, 16, weight.shape, generator=draw)
            words = sum(numbers[:, i::8] << (4 * i) for i in range(8))
            scales, least = (torch.rand(len(weight), weight.shape[1] // 64, generator=draw) for _ in range(2))
            stem = name.removesuffix("weight")
            codes |= {name: words.to(torch.uint32), f"{stem}scales": scales, f"{stem}qbiases": least}
            spread = numbers.view(len(weight), -1, 64) * scales[..., None] + least[..., None]
            values[name] = spread.view(weight.shape).to(weight.dtype)
    return written(folder, of, codes, {"quant_method": "metal", "bits": 4, "group_size": 64}), values


def bitsandbytes(folder: Path, of: Path, bits: int) -> Path:
    import transformers

    how = transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    module = transformers.AutoModelForCausalLM.from_pretrained(of, quantization_config=how, device_map="cpu")
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def check(model: zoo.Model, folder: Path) -> None:
    """It is a plain model: the plan's skeleton, and what is saved of it, in our reader and in transformers."""
    import transformers

    skeleton = zoo.load(folder, weights="dequantized", device="meta")
    assert (skeleton.params, skeleton.dtype, skeleton.stored) == (model.params, model.dtype, model.stored)
    place = model.save(folder.parent / f"{folder.name}-saved")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        logits = model.module(ids).logits
        assert torch.equal(zoo.load(place).module(ids).logits, logits)
        assert torch.equal(transformers.AutoModelForCausalLM.from_pretrained(place)(ids).logits, logits)


@pytest.mark.parametrize("make", [fp8, mxfp8, metal])
def test_codes_become_what_they_stand_for(plain: Path, tmp_path: Path, make: Any):
    folder, values = make(tmp_path / make.__name__, plain)
    model = zoo.load(folder, weights="dequantized")
    tensors = model.tensors()
    for name, value in values.items():
        torch.testing.assert_close(tensors[name].detach(), value, rtol=2**-7, atol=1e-6)
    check(model, folder)


def test_mxfp4_becomes_what_its_codes_stand_for(tmp_path: Path):
    folder, values = mxfp4(tmp_path / "mxfp4")
    model = zoo.load(folder, weights="dequantized")
    tensors = model.tensors()
    assert all(torch.equal(tensors[name].detach(), value) for name, value in values.items())
    check(model, folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_becomes_about_what_it_was_made_of(plain: Path, tmp_path: Path, bits: int):
    folder = bitsandbytes(tmp_path / f"bits-{bits}", plain, bits)
    model, before = zoo.load(folder, weights="dequantized"), load_file(plain / "model.safetensors")
    for name, tensor in model.tensors().items():
        scale = float(before[name].float().abs().max())
        assert (tensor.detach().float() - before[name].float()).abs().max() <= scale * (0.25 if bits == 4 else 0.01)
    check(model, folder)


def test_without_asking_it_is_refused_with_the_way_to_ask(plain: Path, tmp_path: Path):
    folder, _ = fp8(tmp_path / "fp8", plain)
    for device in (None, "meta"):
        with pytest.raises(
            ArtifactError,
            match=r'quantized, by fp8; .* weights="dequantized" in Python and under \[model\] in a recipe',
        ):
            zoo.load(folder, device=device)


def test_what_transformers_does_not_widen_is_refused(plain: Path, tmp_path: Path):
    folder, _ = fp8(tmp_path / "gptq", plain)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    for device in (None, "meta"):
        with pytest.raises(RequestError, match="cannot dequantize the weights of gptq, only those of bitsandbytes, "):
            zoo.load(folder, weights="dequantized", device=device)


def test_blocks_that_are_cut_at_an_edge_are_not_widened_to_other_numbers(plain: Path, tmp_path: Path):
    """Of 192 rows in blocks of 128 transformers 5.24 makes two blocks of 96."""
    folder, _ = fp8(tmp_path / "fp8", plain)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "mlp.up_proj" in name or "mlp.gate_proj" in name]:
        tensors[name] = tensors[name][:192] if name.endswith("weight") else tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for device in (None, "meta"):
        with pytest.raises(RequestError, match=r"has a side of 192, which is no whole number of blocks of 128"):
            zoo.load(folder, weights="dequantized", device=device)


@pytest.mark.skipif(find_spec("compressed_tensors") is not None, reason="what is missing is installed")
def test_a_missing_package_is_named_by_load_and_plan_alike(plain: Path, tmp_path: Path):
    folder = written(
        tmp_path / "ct", plain, load_file(plain / "model.safetensors"), {"quant_method": "compressed-tensors"}
    )
    for device in (None, "meta"):
        with pytest.raises(RequestError, match="not installed: pip install compressed-tensors"):
            zoo.load(folder, weights="dequantized", device=device)


def test_a_command_takes_codes_where_it_is_told_to(plain: Path, tmp_path: Path):
    folder, _ = fp8(tmp_path / "fp8", plain)
    known = json.loads(command("info", str(folder), "--json").stdout)
    assert known["weights"] == f"codes of fp8 in {folder}, no weights" and known["params"] == 0
    refused = command("run", str(folder), "--prompt", "ab")
    assert refused.returncode == 1 and "`--weights dequantized` in a command" in refused.stderr
    for name, *more in (("run", "--prompt", "ab", "--max-new-tokens", "2"), ("inspect",)):
        done = command(name, str(folder), *more, "--weights", "dequantized")
        assert done.returncode == 0 and done.stdout, done.stderr


def test_only_a_directory_of_codes_is_dequantized(plain: Path, tmp_path: Path):
    assert zoo.load(plain, weights="dequantized").params == zoo.load(plain).params
    saved = zoo.load(plain).save(tmp_path / "saved")
    for name in ("tiny-code", "tiny-vlm", saved):
        with pytest.raises(ZooError, match="weights='dequantized' goes with a directory of quantized weights"):
            zoo.load(name, weights="dequantized")


def test_a_recipe_compresses_a_widened_model_and_makes_it_again(plain: Path, tmp_path: Path):
    from zoo_compress import Recipe, plan, run
    from zoo_compress.recipe.reproduce import reproduce

    fp8(tmp_path / "fp8", plain)
    texts(tmp_path / "texts")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[recipe]\nname = "m"\n[model]\nname = "./fp8"\nweights = "dequantized"\n[data]\ntest = "texts[:1]"\n'
        '[[stage]]\nuse = "inherit"\nlayers = "first:1"\n[evaluate]\nspeed = false\nperplexity = {max_tokens = 60}\n'
    )
    parsed = Recipe.load(recipe)
    expected = plan(parsed).stages
    run(parsed, out=tmp_path / "out")
    model = zoo.load(tmp_path / "out")
    assert model.params == expected[-1].params and model.dtype == "bfloat16"
    assert reproduce(tmp_path / "out", base=tmp_path).identical
