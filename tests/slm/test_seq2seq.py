"""Models that are no plain decoder: T5 and BART, which read one text and write another, and Mamba, which has no attention."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import apply, data, tokenizer
from twins import FFN, HEADS, VOCABULARY, WIDTH, _shake
from zoo_compress import Recipe, plan
from zoo_compress.report.inspection import describe
from zoo_slm.evaluators import Perplexity
from zoo_slm.language import TransformersText

import zoo
from zoo.catalog import ModelSpec
from zoo.errors import Refused, RequestError
from zoo.family.task import task_of
from zoo.family.text import generate
from zoo.family.text.generate import next_tokens
from zoo.family.text.sampling import pick
from zoo.family.text.tokens import start_token
from zoo.model.context import Context
from zoo.model.model import Model

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            **SPECIAL,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": FFN,
            "num_layers": 2,
            "num_heads": HEADS,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            **SPECIAL,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": FFN,
            "decoder_ffn_dim": FFN,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
        },
    ),
    "fsmt": (
        "FSMTConfig",
        "FSMTForConditionalGeneration",
        {
            "langs": ["en", "de"],
            "src_vocab_size": VOCABULARY,
            "tgt_vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": FFN,
            "decoder_ffn_dim": FFN,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
        },
    ),
    "bigbird-pegasus": (
        "BigBirdPegasusConfig",
        "BigBirdPegasusForConditionalGeneration",
        {
            **SPECIAL,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": FFN,
            "decoder_ffn_dim": FFN,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
            "block_size": 2,
            "num_random_blocks": 1,
        },
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {**SPECIAL, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8},
    ),
}


def small(name: str, **changes: Any) -> Model:
    import transformers

    config, kind, values = TABLE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, kind)(getattr(transformers, config)(**values | changes)).eval()
    known = {key: value for key, value in module.config.to_dict().items() if value is not None}
    task = "causal-lm" if name == "mamba" else "seq2seq"
    spec = ModelSpec(name, family="transformers", modality="text", task=task, plugin="zoo_slm", config=known)
    return Model(module, TransformersText(), spec, processor=tokenizer(), origin="random")


def lively(name: str) -> Model:
    """A twin whose answer depends on what it reads."""
    model = small(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _shake(model.module)
    return model


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
    assert torch.equal(batch["decoder_input_ids"], shifted) and batch["input_ids"].shape == batch["labels"].shape == (
        1,
        8,
    )
    rows = model.family.rows(model, batch, ["label"])["label"]
    with torch.no_grad():
        expected = model.module(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        mine = torch.nn.functional.cross_entropy(rows.head(rows.hidden), rows.target)
    assert mine == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("distill", {"steps": 2, "batch": 2, "length": 16}),
        ("train", {"steps": 2, "batch": 2, "length": 16}),
        ("prune.structured", {"ffn": 0.5}),
        ("prune.structured", {"ffn": 0.5, "importance": "activation"}),
        ("quantize.int8", {}),
        ("lowrank.svd", {"rank": 4, "target": "language.attention"}),
        ("prune.magnitude", {"sparsity": 0.5}),
        ("inherit", {"layers": "first:1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stages_apply_and_survive_a_reload(name: str, use: str, options: dict[str, Any], tmp_path: Path):
    model = small(name)
    apply(model, use, options, words(model))
    batch = model.family.example(model)
    loaded = zoo.load(model.save(tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(loaded.family.forward(loaded, batch), model.family.forward(model, batch))


def test_speed_of_a_seq2seq_model_is_that_of_one_pass():
    assert task_of(small("t5")).speeds(small("t5"), prefill=8, decode=4).keys() == {"prefill_tokens_per_s"}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_seq2seq_model_reads_the_prompt_and_writes_what_transformers_writes(name: str):
    model = lively(name)
    ids = torch.tensor([model.processor("w5 w6 w7")["input_ids"]])
    model.module.generation_config.forced_eos_token_id = None  # type: ignore[union-attr]  # BART's: the last of max_new_tokens
    with torch.no_grad():
        plain = model.module.generate(input_ids=ids, max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:]  # type: ignore[operator]
    expected = model.processor.decode(plain, skip_special_tokens=True)
    assert expected and model.generate("w5 w6 w7", max_new_tokens=12) == expected
    assert "".join(model.generate("w5 w6 w7", max_new_tokens=12, stream=True)) == expected
    assert model.generate("w5 w6 w7", max_new_tokens=12) != model.generate("w8", max_new_tokens=12)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_with_a_cache_writes_what_one_without_writes(name: str):
    model = lively(name)
    found = list(next_tokens(model, [5, 9, 40], 6, temperature=1.5, seed=3))
    read = [int(model.spec.config["decoder_start_token_id"])]
    draw = torch.Generator().manual_seed(3)
    for token in found:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([[5, 9, 40]]), decoder_input_ids=torch.tensor([read])).logits[
                0, -1
            ]
        assert pick(logits, 1.5, 1.0, draw) == token
        read.append(token)


@pytest.mark.parametrize("name", ["t5", "bart", "mamba"])
def test_several_prompts_get_what_each_gets_alone(name: str):
    model = lively(name)
    prompts = ["w5 w6 w7 w8 w9 w10 w11 w12", "w20", "w30 w31 w32"]
    for how in ({}, {"temperature": 1.5, "seed": 2}, {"temperature": 1.0, "stop": ["w7", "w1"]}):
        together = model.generate(prompts, max_new_tokens=12, **how)
        alone = [{**how, "seed": how.get("seed", 0) + place} for place in range(len(prompts))]  # draws of its own
        assert together == [
            model.generate(prompt, max_new_tokens=12, **own) for prompt, own in zip(prompts, alone, strict=True)
        ]
    assert len(set(together)) > 1


def test_the_encoder_reads_what_its_tokenizer_adds(monkeypatch: pytest.MonkeyPatch):
    """T5's adds </s>, and was trained so."""
    from tokenizers.processors import TemplateProcessing

    model, seen = small("t5"), []
    model.processor.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    monkeypatch.setattr(generate, "next_tokens", lambda _model, ids, *_, **__: seen.append(ids) or iter(()))
    model.generate("w5 w6")
    assert seen == [[5, 6, 2]]


def test_what_a_seq2seq_model_is_not_asked():
    model = small("bart")
    with pytest.raises(RequestError, match=r"^The prompt has 70 tokens; bart takes 64 in all\.$"):
        model.generate("w5 " * 70)
    assert len(list(next_tokens(model, [5], 63))) == 63 and isinstance(
        model.generate("w5 " * 64, max_new_tokens=10**6), str
    )
    for options in ({"messages": [{"role": "user", "content": "w5"}]}, {"suffix": "w5"}):
        with pytest.raises(
            RequestError,
            match=rf"^'{next(iter(options))}' is not an option of generate for bart, a seq2seq model\. Options: max_new_tokens, ",
        ):
            model.generate(None if "messages" in options else "w5", **options)


@pytest.mark.parametrize(
    ("use", "options"),
    [("quantize.int8", {}), ("quantize.nf4", {}), ("lowrank.svd", {"rank": 4, "whiten": False, "target": "all"})],
)
def test_the_plan_takes_layers_that_the_architecture_reads_itself(tmp_path: Path, use: str, options: dict[str, Any]):
    """T5 asks each FFN's last matrix for its dtype."""
    recipe = {
        "recipe": {"name": "r"},
        "model": {"name": str(small("t5").save(tmp_path / "t5"))},
        "stage": [{"use": use, **options}],
        "evaluate": {"tasks": [], "speed": False},
    }
    planned = plan(Recipe.parse(recipe)).stages[1]
    model = small("t5")
    apply(model, use, options)
    assert not planned.untried and planned.params == model.params
    assert use in {
        f"{trait.stage.split('(')[-1].rstrip(')')}"
        for trait in model.state()["decoder.block.1.layer.2.DenseReluDense.wo"]
    }


@pytest.mark.parametrize("use", ["quantize.int8", "quantize.nf4"])
def test_a_packed_weight_that_the_code_around_it_reads_is_widened_for_it(use: str, tmp_path: Path):
    model = small("t5")
    apply(model, use)
    packed = model.module.encoder.block[0].layer[-1].DenseReluDense.wo
    assert torch.equal(packed.weight, packed.dequantize())
    assert not hasattr(model.module.encoder.block[0].layer[-1].DenseReluDense.wi, "weight")
    half = copy.deepcopy(packed).to(torch.bfloat16)
    assert half.weight.dtype == torch.bfloat16 and packed.weight.dtype == torch.float32
    batch = model.family.example(model)
    saved = zoo.load(model.save(tmp_path / "saved"))
    assert torch.equal(model.family.forward(model, batch), saved.family.forward(saved, batch))


def test_a_factored_weight_that_the_code_around_it_reads_is_multiplied_out():
    model = small("t5")
    apply(model, "lowrank.svd", {"rank": 4, "whiten": False})
    factored = model.module.decoder.block[0].layer[-1].DenseReluDense.wo
    assert torch.equal(factored.weight, factored.up.weight @ factored.down.weight)
    apply(model, "quantize.int8")  # the factors, whose weights it reads in its turn
    model.family.forward(model, model.family.example(model))


@pytest.mark.parametrize("depths", [(4, 2), (2, 4), (3, 3)])
def test_language_is_the_decoder_whichever_is_deeper(depths: tuple[int, int], tmp_path: Path):
    model = small("bart", encoder_layers=depths[0], decoder_layers=depths[1])
    stacks = {name: (stack.path, len(stack.blocks)) for name, stack in model.anatomy.stacks.items()}
    assert stacks == {
        "language": ("model.decoder.layers", depths[1]),
        "encoder": ("model.encoder.layers", depths[0]),
    }
    found = describe(str(model.save(tmp_path / "model")))
    assert found["naming"] == "language is the decoder, whichever of encoder and decoder is deeper"


def test_mamba_generates_from_its_state_as_from_the_whole_text():
    model = small("mamba")
    ids = [5, 9, 3, 40]
    found = list(next_tokens(model, ids, 6))
    for token in found:
        with torch.no_grad():
            assert int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids = [*ids, token]
    assert isinstance(model.generate("w3 w4", max_new_tokens=4), str)


def test_an_encoder_reads_from_the_start_of_a_text():
    """Windows and measured texts begin with <s>, as BART's tokenizer begins a text, and so does each window."""
    from tokenizers.processors import TemplateProcessing

    model = small("bart")
    model.processor.backend_tokenizer.post_processor = TemplateProcessing(
        single="w9 $A w8", special_tokens=[("w9", 9), ("w8", 8)]
    )
    windows = list(model.family.windows(model, data(), length=16))
    assert windows and all(window["input_ids"][0] == 9 for window in windows)
    assert all(window["decoder_input_ids"][0] == start_token(model) for window in windows)


def test_fsmt_whose_config_unties_has_no_head_to_untie(tmp_path: Path):
    """wmt19's configs say tie_word_embeddings = false, and the decoder's table is the head all the same."""
    model = small("fsmt", tie_word_embeddings=False)
    model.module.save_pretrained(tmp_path)
    ids_BT = torch.randint(5, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    loaded = zoo.load(tmp_path).module
    with torch.no_grad():
        found, expected = (
            module(input_ids=ids_BT, decoder_input_ids=ids_BT).logits
            for module in (loaded, type(model.module).from_pretrained(tmp_path))
        )
    assert torch.equal(found, expected)


def test_tokens_of_fsmt_see_none_after_them():
    model = lively("fsmt")
    batch = model.family.example(model, batch=1, size=8)
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        whole = model.family.forward(model, batch)
        other = model.family.forward(model, {**batch, "decoder_input_ids": ids.index_fill(1, torch.tensor([7]), 5)})
        rows = model.family.rows(model, {**batch, "labels": ids}, ("label",))["label"]
    assert int(ids[0, 7]) != 5
    assert torch.equal(whole[:, :7], other[:, :7])
    assert torch.equal(rows.head(rows.hidden), whole[0])
    assert model.family.caches(model)  # type: ignore[attr-defined]


@pytest.mark.parametrize("sizes", [{"heads": 0.5}, {"width": 24}])
def test_sizes_of_attention_that_a_short_text_builds_anew_are_not_pruned(sizes: dict[str, Any]):
    model = small("bigbird-pegasus")
    for _ in range(2):
        with pytest.raises(Refused, match=r"builds its attention anew .* prune ffn instead"):
            apply(model, "prune.structured", sizes)
        model.family.forward(model, model.family.example(model))  # after which it holds the other attention
    apply(model, "prune.structured", {"ffn": 0.25})
    apply(small("bigbird-pegasus", attention_type="original_full"), "prune.structured", {"heads": 0.5})
