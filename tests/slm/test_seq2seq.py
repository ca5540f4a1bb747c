"""Models that are no plain decoder: T5 and BART, which read one text and write another, and Mamba, which has no attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stages import apply, data, tokenizer
from twins import FFN, HEADS, VOCABULARY, WIDTH
from zoo_slm.evaluate import Perplexity
from zoo_slm.language import TransformersText

import zoo
from zoo.catalog import ModelSpec
from zoo.compressor import Context
from zoo.errors import Refused, RequestError
from zoo.generation import next_tokens
from zoo.model import Model

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration",
           {**SPECIAL, "d_model": WIDTH, "d_kv": 8, "d_ff": FFN, "num_layers": 2, "num_heads": HEADS, "decoder_start_token_id": 0}),
    "bart": ("BartConfig", "BartForConditionalGeneration",
             {**SPECIAL, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": HEADS,
              "decoder_attention_heads": HEADS, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "max_position_embeddings": 64,
              "decoder_start_token_id": 2}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {**SPECIAL, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip


def small(name: str) -> Model:
    import transformers

    config, kind, values = TABLE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, kind)(getattr(transformers, config)(**values)).eval()
    known = {key: value for key, value in module.config.to_dict().items() if value is not None}
    task = "causal-lm" if name == "mamba" else "seq2seq"
    spec = ModelSpec(name, family="transformers", modality="text", task=task, plugin="zoo_slm", config=known)
    return Model(module, TransformersText(), spec, processor=tokenizer(), origin="random")


def words(original: Model) -> Context:
    return Context(data={"train": data(), "calibration": data()}, load=lambda _: original.copy())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_perplexity_is_that_of_the_second_half_given_the_first(name: str):
    model = small(name)
    text = data(tokens=20)
    found = Perplexity().measure(model, text, options={"length": 11})
    ids = torch.tensor(model.processor(text[0].text, add_special_tokens=False)["input_ids"])
    losses = []
    for piece in ids.split(10):  # transformers' own loss shifts the labels to the right itself
        with torch.no_grad():
            losses.append(model.module(input_ids=piece[None, :5], labels=piece[None, 5:]).loss.double())
    assert found["perplexity"]["value"] == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_training_windows_are_those_transformers_makes_of_the_labels(name: str):
    model = small(name)
    window = model.family.windows(model, data(), length=16)[1]
    batch = {key: tensor[None] for key, tensor in window.items()}
    shifted = model.module.prepare_decoder_input_ids_from_labels(labels=batch["labels"])  # type: ignore[operator]
    assert torch.equal(batch["decoder_input_ids"], shifted) and batch["input_ids"].shape == batch["labels"].shape == (1, 8)
    rows = model.family.rows(model, batch, ["label"])["label"]
    with torch.no_grad():
        expected = model.module(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        mine = torch.nn.functional.cross_entropy(rows.head(rows.hidden), rows.target)
    assert mine == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize(
    ("use", "options"),
    [("distill", {"steps": 2, "batch": 2, "length": 16}), ("train", {"steps": 2, "batch": 2, "length": 16}),
     ("prune.structured", {"ffn": 0.5}), ("prune.structured", {"ffn": 0.5, "importance": "activation"}),
     ("quantize.int8", {"skip": ["*.wo"]}), ("lowrank.svd", {"rank": 4, "target": "language.attention"}), ("prune.magnitude", {"sparsity": 0.5}),
     ("inherit", {"layers": "first:1"})],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_stages_apply_and_survive_a_reload(name: str, use: str, options: dict[str, Any], tmp_path: Path):
    model = small(name)
    if name == "bart" and "skip" in options:
        options = {}
    apply(model, use, options, words(model))
    batch = model.family.example(model)
    loaded = zoo.load(model.save(tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(loaded.family.forward(loaded, batch), model.family.forward(model, batch))


def test_speed_of_a_seq2seq_model_is_that_of_one_pass():
    assert small("t5").family.speeds(small("t5"), prefill=8, decode=4).keys() == {"prefill_tokens_per_s"}


def test_a_seq2seq_model_continues_no_text():
    with pytest.raises(RequestError, match="t5 is a seq2seq model; only causal-lm models continue a text"):
        small("t5").generate("w3 w4")


def test_packed_layers_that_the_architecture_reads_itself_are_refused_by_name():
    sentence = r"quantize.int8 does not fit {}: the packed model does not run \({}: .*no attribute 'weight'.*skip = \['\*\.{}'\]"
    with pytest.raises(Refused, match=sentence.format("T5ForConditionalGeneration", r"\S*\.wo", "wo")):
        apply(small("t5"), "quantize.int8")
    with pytest.raises(Refused, match=r'lowrank.svd does not fit T5.*no attribute \'weight\'\)\. Aim at .*"language.attention"'):
        apply(small("t5"), "lowrank.svd", {"rank": 4, "whiten": False})


def test_mamba_generates_from_its_state_as_from_the_whole_text():
    model = small("mamba")
    ids = [5, 9, 3, 40]
    found = list(next_tokens(model, ids, 6))
    for token in found:
        with torch.no_grad():
            assert int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids = [*ids, token]
    assert isinstance(model.generate("w3 w4", max_new_tokens=4), str)
