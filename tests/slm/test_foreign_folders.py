"""What people give as a model directory: loaded as what it is, or refused in one sentence, by `load` and by `plan` alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from twins import twin

import zoo
from zoo.cli.info import Knowledge
from zoo.errors import ZooError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 1234567\n"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    twin("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None takes one away."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refusals(folder: Path) -> list[str]:
    """The sentences with which `load` and `plan` refuse a folder."""
    sentences = []
    for device in (None, "meta"):
        with pytest.raises(ZooError) as refused:
            zoo.load(folder, device=device)
        sentences.append(str(refused.value))
    return sentences


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("within", [False, True], ids=["at the top", "nested"])
def test_codes_are_not_loaded_as_weights(folder: Path, key: str, within: bool):
    codes = {key: {"quant_method": "gptq", "bits": 4}}
    change(folder, **({"text_config": codes} if within else codes))
    for sentence in refusals(folder):
        assert "already quantized, by gptq" in sentence and "checkpoint in float" in sentence


@pytest.mark.parametrize("table", [[{"quant_method": "gptq"}], "gptq", 4, {"quant_method": ["gptq"]}])
def test_whatever_stands_where_a_quantizer_is_named_is_one_sentence(folder: Path, table: Any):
    change(folder, quantization_config=table)
    for sentence in refusals(folder):
        assert "already quantized, by " in sentence


@pytest.mark.parametrize(
    "codes",
    [
        lambda weight: {"weight": (weight * 99).to(torch.int8)},
        lambda weight: {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": weight.abs().max()},
        lambda weight: {"qweight": torch.zeros(4, 32, dtype=torch.int32), "scales": torch.ones(1, 32)},
        lambda weight: {
            "weight": torch.zeros(32, 4, dtype=torch.uint32),
            "scales": weight[:, :1],
            "biases": weight[:, :1],
        },
    ],
    ids=["whole numbers", "eighths and a scale", "gptq", "mlx"],
)
def test_codes_that_no_config_names_are_found_among_the_tensors(folder: Path, codes: Any):
    """Their settings lie in a file beside the config, or nowhere."""
    tensors = load_file(folder / "model.safetensors")
    stem = "model.layers.0.mlp.down_proj."
    tensors |= {stem + name: tensor.contiguous() for name, tensor in codes(tensors.pop(f"{stem}weight")).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for sentence in refusals(folder):
        assert "the codes of a quantizer that no config there names" in sentence and "in float" in sentence
    with pytest.raises(ZooError, match="the codes of a quantizer"):
        zoo.load(folder, weights="dequantized")


@pytest.mark.parametrize("named", [True, False], ids=["dtype in the config", "no dtype in the config"])
@pytest.mark.parametrize(
    ("kind", "runs"), [(torch.float64, "float32"), (torch.float8_e4m3fn, "float32"), (torch.bfloat16, "float32")]
)
def test_a_dtype_that_models_do_not_run_in_is_read_in_one(tmp_path: Path, kind: torch.dtype, runs: str, named: bool):
    """The plan's skeleton has the same, and what is saved of it loads; of several the first tensor of floats decides."""
    module = twin("llama")
    module.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    chosen = "mlp" if kind == torch.bfloat16 else ""
    save_file({n: t.to(kind) if chosen in n else t for n, t in tensors.items()}, tmp_path / "model/model.safetensors")
    change(tmp_path / "model", dtype=str(kind).removeprefix("torch.") if named and not chosen else None)
    model = zoo.load(tmp_path / "model")
    assert model.dtype == zoo.load(tmp_path / "model", device="meta").dtype == runs
    again = zoo.load(model.save(tmp_path / "saved")).tensors()
    for name, tensor in model.tensors().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, again[name])


@pytest.mark.parametrize(
    "key",
    [
        {"return_dict": False},
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_3"},
        {"dtype": "torch.bfloat16"},
        {"torch_dtype": "auto", "dtype": None},
    ],
    ids=str,
)
def test_how_a_model_was_run_is_no_part_of_it(folder: Path, key: dict[str, Any], tmp_path: Path):
    """transformers asks for the kernels that a config names, where they are not installed too."""
    change(folder, **key)
    model, skeleton = zoo.load(folder), zoo.load(folder, device="meta")
    assert model.dtype == skeleton.dtype == ("bfloat16" if "torch.bfloat16" in key.values() else "float32")
    ids = torch.arange(8)[None]
    assert torch.equal(model.module(ids).logits, zoo.load(model.save(tmp_path / "saved")).module(ids).logits)


def test_a_config_that_quantizes_nothing_loads(folder: Path):
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "quantization_config": None})
    )
    assert zoo.load(folder).params


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, file: str):
    (folder / file).write_text(LFS)
    with pytest.raises(ZooError, match=rf"{file} is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        zoo.load(folder)


def test_only_the_models_own_files_count(folder: Path):
    """Beside it: Mistral's own layout in another precision, another variant, and a checkpoint that is still being written."""
    expected, planned = zoo.load(folder), zoo.load(folder, device="meta")
    change(folder, dtype=None)
    for name in ("consolidated.safetensors", "model.fp16.safetensors"):
        save_file({"tok_embeddings.weight": torch.zeros(8, 8, dtype=torch.bfloat16)}, folder / name)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    loaded, skeleton = zoo.load(folder), zoo.load(folder, device="meta")
    assert (loaded.dtype, skeleton.dtype) == (expected.dtype, planned.dtype)
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors().values(), expected.tensors().values(), strict=True))


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "model.fp16.safetensors", "model-00001-of-00001.safetensors"]
)
def test_weights_that_transformers_does_not_look_for_are_named(folder: Path, name: str):
    (folder / "model.safetensors").rename(folder / name)
    for sentence in refusals(folder):
        assert f"holds {name}, but no model.safetensors, nor the model.safetensors.index.json" in sentence


def test_a_config_beside_an_adapter_is_told_to_merge_it(folder: Path):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    for sentence in refusals(folder):
        assert "no weights of a model" in sentence and "merge it into some/base" in sentence


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("BartForSequenceClassification", {"model_type": "bart", "is_encoder_decoder": True}, "a text classifier"),
        ("LlavaForConditionalGeneration", {"model_type": "llava"}, "a vision-language model"),
        ("Gemma3ForConditionalGeneration", {"model_type": "gemma3"}, "a vision-language model"),
        ("WhisperForConditionalGeneration", {"model_type": "whisper"}, "a speech recognition model"),
        ("Wav2Vec2ForCTC", {"model_type": "wav2vec2"}, "a speech recognition model"),
        ("BertForQuestionAnswering", {"model_type": "bert"}, "a model that answers questions"),
        ("BertLMHeadModel", {"model_type": "bert", "is_decoder": False}, "whose tokens see those after them"),
        ("RobertaForCausalLM", {"model_type": "roberta"}, "whose tokens see those after them"),
        ("XLNetLMHeadModel", {"model_type": "xlnet"}, "whose tokens see those after them"),
    ],
)
def test_another_kind_of_model_is_named(folder: Path, name: str, config: dict[str, Any], says: str):
    (folder / "config.json").write_text(json.dumps({**SMALL, **config, "architectures": [name]}))
    for sentence in refusals(folder):
        assert says in sentence and name in sentence


@pytest.mark.parametrize(
    ("kind", "named", "task"),
    [
        ("BertForMaskedLM", None, "masked-lm"),
        ("RobertaForMaskedLM", None, "masked-lm"),
        ("BertLMHeadModel", "BertLMHeadModel", "causal-lm"),
        ("BartForConditionalGeneration", None, "seq2seq"),
        ("T5ForConditionalGeneration", "T5ForConditionalGeneration", "seq2seq"),
        ("GPTNeoXForCausalLM", None, "causal-lm"),
        ("GPTNeoXForCausalLM", "MyOwnForCausalLM", "causal-lm"),
        ("AlbertForMaskedLM", None, "masked-lm"),
        ("T5ForConditionalGeneration", None, "seq2seq"),
        ("ModernBertForMaskedLM", None, "masked-lm"),
    ],
)
def test_the_task_is_that_of_the_class_or_of_its_type(tmp_path: Path, kind: str, named: str | None, task: str):
    """A BERT without `architectures` is the masked model that its class is, not one that generates."""
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    t5 = {"d_model": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 320}
    values = {"BartForConditionalGeneration": {**bart, "vocab_size": 320}, "T5ForConditionalGeneration": t5}.get(
        kind, SMALL
    )
    cls = getattr(transformers, kind)
    cls(cls.config_class(**values, is_decoder=kind == "BertLMHeadModel")).save_pretrained(tmp_path)
    change(tmp_path, architectures=[named] if named else None)
    assert zoo.load(tmp_path).spec.task == zoo.load(tmp_path, device="meta").spec.task == task


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("whisper", "a model of type whisper, a speech recognition model"),
        ("llava", "a model of type llava, a vision-language model"),
        ("vit", "a model of type vit, of which transformers has no language model"),
        ("weirdo", "of type 'weirdo': transformers [0-9.]+ has no class for that type and task"),
    ],
)
def test_a_type_without_a_class_of_ours_is_named(folder: Path, kind: str, says: str):
    """Where the config names no class; of a type that transformers does not know, none of its lists is printed."""
    change(folder, model_type=kind, architectures=None)
    with pytest.raises(ZooError, match=says) as refused:
        zoo.load(folder, device="meta")
    assert len(str(refused.value)) < 250 + len(str(folder))


def test_a_class_for_another_task_of_that_type_is_one_sentence(folder: Path):
    change(folder, architectures=["BertForMaskedLM"])
    for sentence in refusals(folder):
        assert sentence.endswith("has no class for that type and task.") or "has no class for that type" in sentence


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "GPT2ForSequenceClassification"])
def test_the_head_of_another_task_is_not_dropped_where_no_class_is_named(tmp_path: Path, name: str):
    """Its language model would share its token table, so nothing would be missing."""
    cls = getattr(transformers, name)
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    gpt = {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    cls(cls.config_class(**(bart if name.startswith("Bart") else gpt), vocab_size=320)).save_pretrained(tmp_path)
    change(tmp_path, architectures=None)
    with pytest.raises(ZooError, match=r"is not part of a .*, and config.json names no class: write the one"):
        zoo.load(tmp_path)


def test_a_part_of_a_pipeline_is_called_one(folder: Path):
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel", "sample_size": 8}')
    for sentence in refusals(folder):
        assert "describes a UNet2DModel of diffusers, one part of a pipeline: give the folder of the whole" in sentence


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "some/base"}'}, r"merge it into some/base"),
        ({"adapter_config.json": "{"}, "merge it into the model it was trained on"),
        ({"mmproj.gguf.part": "GGUF"}, "neither zoo.json nor a known config"),
        ({"model.safetensors": ""}, "without a config.json"),
        ({"pytorch_model.bin": ""}, "only safetensors are read"),
        ({"deeper/config.json": "{}"}, "but .*deeper does"),
    ],
)
def test_a_folder_of_something_else_is_told_what_it_holds(tmp_path: Path, files: dict[str, str], says: str):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ZooError, match=says):
        zoo.load(tmp_path)


@pytest.mark.parametrize("named", [True, False], ids=["its class named", "no class named"])
@pytest.mark.parametrize(("name", "task"), [("bert", "masked-lm"), ("llama", "causal-lm"), ("t5", "seq2seq")])
def test_info_knows_the_task_and_whether_there_is_a_cache(tmp_path: Path, name: str, task: str, named: bool):
    small = transformers.T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    module = transformers.T5ForConditionalGeneration(small) if name == "t5" else twin(name)
    module.save_pretrained(tmp_path / "model")
    if not named:
        change(tmp_path / "model", architectures=None)
    found = Knowledge.of(str(tmp_path / "model")).to_json()
    assert found["task"] == task == zoo.load(tmp_path / "model", device="meta").spec.task
    assert (found["kv_cache_bytes_per_token"] is None) == (task == "masked-lm")


def test_prophetnet_takes_as_many_tokens_as_its_predicting_streams_have_positions_for(tmp_path: Path) -> None:
    config = transformers.ProphetNetConfig(
        hidden_size=16,
        num_decoder_layers=1,
        num_decoder_attention_heads=2,
        decoder_ffn_dim=16,
        vocab_size=32,
        max_position_embeddings=20,
        is_encoder_decoder=False,
    )
    transformers.ProphetNetForCausalLM(config).save_pretrained(tmp_path)
    model = zoo.load(tmp_path)
    length = model.family.context_length(model)  # type: ignore[attr-defined]
    assert length == 18
    model.module(torch.full((1, length), 5))
    with pytest.raises(IndexError):
        model.module(torch.full((1, length + 1), 5))


def test_a_model_that_draws_anew_at_every_pass_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "reformer", "architectures": ["ReformerModelWithLMHead"]})
    )
    with pytest.raises(ZooError, match=r"a model of type reformer, which draws the hashes of its attention anew"):
        zoo.load(tmp_path, device="meta")


def test_a_class_that_runs_in_float32_alone_is_loaded_in_it_or_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.DebertaConfig(vocab_size=32, relative_attention=True, pos_att_type=["c2p"], **shape)
    transformers.DebertaForMaskedLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = zoo.load(tmp_path)
    assert model.dtype == zoo.load(tmp_path, device="meta").dtype == "float32"
    model.module(torch.arange(8)[None])
    for device in ("cpu", "meta"):
        with pytest.raises(
            ZooError, match=r"of type deberta, whose class in transformers runs rightly in float32 alone"
        ):
            zoo.load(tmp_path, dtype="bfloat16", device=device)


def test_whisper_reads_as_many_tokens_as_its_decoder_has_positions_for(tmp_path: Path) -> None:
    shape = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    config = transformers.WhisperConfig(vocab_size=32, max_target_positions=20, pad_token_id=0, **shape)
    transformers.WhisperForCausalLM(config).save_pretrained(tmp_path)
    assert zoo.load(tmp_path).family.context_length(zoo.load(tmp_path)) == 20  # type: ignore[attr-defined]


def test_a_head_that_is_the_decoders_own_table_stays_it(tmp_path: Path) -> None:
    """T5Gemma has a table for either side, and its head is that of the decoder."""
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    side |= {"num_key_value_heads": 1, "vocab_size": 32, "query_pre_attn_scalar": 8}
    config = transformers.T5GemmaConfig(encoder=dict(side), decoder=dict(side), vocab_size=32)
    transformers.T5GemmaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    model = zoo.load(tmp_path / "model")
    model.save(tmp_path / "saved")
    assert model.aliases() == zoo.load(tmp_path / "saved").aliases() != {}


def test_an_untied_head_that_is_no_plain_layer_is_drawn_too(tmp_path: Path) -> None:
    """T5Gemma's is a module of its own, which T5's, of a class with a like name, is not."""
    side = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 32,
    }
    config = transformers.T5GemmaConfig(
        encoder=dict(side), decoder=dict(side), vocab_size=32, tie_word_embeddings=False
    )
    transformers.T5GemmaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    module: Any = zoo.load(tmp_path / "model", weights="random").module
    head, table = module.lm_head.out_proj.weight, module.get_decoder().embed_tokens.weight
    assert head is not table and 0 < float(head.detach().std()) < 0.1
