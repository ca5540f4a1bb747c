"""Generation: streamed text is the text, nothing is cut or leaks, and a seed says everything about a sample."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stages import small
from tiny import checkpoint
from twins import CAUSAL, TABLE, tokens, twin, twin_model

import zoo
from zoo.errors import RequestError
from zoo.family.text import generate, readers, sampling
from zoo.family.text.generate import next_tokens
from zoo.family.text.tokens import end_tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> zoo.Model:
    """A random model over bytes: its text is full of halves of characters."""
    return zoo.load(checkpoint(tmp_path_factory.mktemp("model"), "llama-gqa", max_position_embeddings=128))


def scripted(monkeypatch: pytest.MonkeyPatch, model: zoo.Model, text: str) -> None:
    """Let the model say `text`, byte by byte, whatever it is asked."""
    alphabet = {byte: model.processor.convert_tokens_to_ids(piece) for byte, piece in byte_pieces().items()}
    says = [alphabet[byte] for byte in text.encode()]
    monkeypatch.setattr(generate, "next_tokens", lambda _m, _ids, count, **_: iter(says[:count]))


def byte_pieces() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(rest)}}


def pieces(model: zoo.Model, prompt: str = "def add", **options: Any) -> list[str]:
    return list(model.generate(prompt, stream=True, **options))


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_streamed_pieces_join_to_the_whole(model: zoo.Model, seed: int):
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.5, "seed": seed}
    assert "".join(pieces(model, **options)) == model.generate("def add", **options)
    assert all(piece for piece in pieces(model, **options))


def test_a_character_of_several_tokens_comes_in_one_piece(model: zoo.Model, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, model, "aé€🎉z")
    assert pieces(model) == ["a", "é", "€", "🎉", "z"]


def test_half_a_character_at_the_end_is_shown_as_such(model: zoo.Model, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, model, "a🎉")
    assert pieces(model, max_new_tokens=3) == ["a", "�"]


@pytest.mark.parametrize(
    ("says", "stop", "shown"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STOP two", ["STOP", "one "], ""),
        ("a né b", ["né"], "a "),
        ("x€€y", ["€€"], "x"),
        ("ababac", ["abac"], "ab"),
        ("one STO", ["STOP"], "one STO"),
        ("aab", ["aaab", "ab"], "a"),
        ("one\n\ntwo", "\n\n", "one"),
        ("🎉🎉", ["🎉🎉🎉"], "🎉🎉"),
    ],
)
def test_a_stop_string_never_leaks(model: zoo.Model, monkeypatch: pytest.MonkeyPatch, says: str, stop: Any, shown: str):
    scripted(monkeypatch, model, says)
    assert "".join(pieces(model, stop=stop)) == shown == model.generate("def add", stop=stop)


@settings(max_examples=300, deadline=None)
@given(
    says=st.text(alphabet="aé€🎉\n", max_size=12),
    stop=st.lists(st.text(alphabet="aé€🎉\n", min_size=1, max_size=4), max_size=3),
)
def test_streaming_is_cutting_the_text_at_the_first_stop(model: zoo.Model, says: str, stop: list[str]):
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, model, says)
        found = pieces(model, max_new_tokens=100, stop=stop)
    # The text ends where a stop string is complete first; what was shown before is never taken back.
    ends = [(says.find(s) + len(s), says.find(s)) for s in stop if s in says]
    assert "".join(found) == (says[: min(at for end, at in ends if end == min(ends)[0])] if ends else says)
    assert not any("�" in piece for piece in found)


def test_the_end_of_text_ends_the_text(model: zoo.Model, monkeypatch: pytest.MonkeyPatch):
    one = model.processor("a")["input_ids"][0]
    monkeypatch.setattr(generate, "next_tokens", lambda *_, **__: iter([one, model.processor.eos_token_id, one]))
    assert model.generate("def add") == "a"


def test_the_space_before_the_first_word_is_kept(model: zoo.Model, monkeypatch: pytest.MonkeyPatch):
    """A tokenizer of the SentencePiece kind drops the space of the first word it decodes."""
    from dataclasses import replace

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "▁one": 2, "▁two": 3, "▁three": 4}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    worded = replace(
        model, processor=PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    )
    monkeypatch.setattr(generate, "next_tokens", lambda *_, **__: iter([3, 4]))
    assert worded.processor.decode([3, 4]) == "two three"
    assert pieces(worded, "one") == [" two", " three"]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ("", {}, "The prompt is empty: pass some text to continue."),
        (None, {}, "The prompt is empty: pass some text to continue."),
        ("x", {"max_new_tokens": "5"}, "max_new_tokens = '5': input should be a whole number."),
        ("x", {"temperature": None}, "temperature = None: input should be a number."),
        ("x", {"seed": 1.5}, "seed = 1.5: input should be a whole number."),
        ("x", {"max_new_tokens": 0}, "max_new_tokens = 0: input should be greater than or equal to 1."),
        ("x", {"temperature": float("nan")}, "temperature = nan: input should be a finite number."),
        ("x", {"temperature": float("inf")}, "temperature = inf: input should be a finite number."),
        ("x", {"top_p": 0}, "top_p = 0: input should be greater than 0."),
        ("x", {"seed": -1}, "seed = -1: input should be greater than or equal to 0."),
        (
            "x",
            {"stop": [""]},
            "stop = ['']: a stop string is some text; an empty one would stop before the first character.",
        ),
        ("x", {"seed": True}, "seed = True: input should be a whole number."),
        ("x", {"seed": 2**63}, "seed = 9223372036854775808: input should be less than 9223372036854775808."),
        (
            "x",
            {"temprature": 1},
            "'temprature' is not an option of generate. Did you mean 'temperature'? Options: max_new_tokens, temperature, top_p, seed, stop, count, messages, suffix, files, repo, path, stream.",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_request_is_refused_before_anything_is_generated(
    model: zoo.Model, prompt: Any, options: dict[str, Any], sentence: str, stream: bool
):
    with pytest.raises(RequestError) as caught:
        model.generate(prompt, stream=stream, **options)
    assert str(caught.value) == sentence


def test_a_prompt_that_fills_the_context_is_refused(model: zoo.Model):
    word = " §"
    each = len(model.processor(word)["input_ids"])
    with pytest.raises(RequestError, match=rf"^The prompt has {each * 128} tokens; model\d* takes 128 in all\.$"):
        model.generate(word * 128)
    room = len(model.processor.decode(list(next_tokens(model, [5] * 127, 9))))
    assert room and len(list(next_tokens(model, [5] * 4, 9))) == 9
    assert len(model.processor(model.generate("a" * 4, max_new_tokens=10**6, temperature=2.0))["input_ids"]) <= 128 * 3


def test_a_prompt_without_tokens_and_a_model_without_words_are_refused():
    with pytest.raises(
        RequestError, match=r"^The prompt ' ' has no token that llama knows: pass some text to continue\.$"
    ):
        small("llama").generate(" ")
    with pytest.raises(RequestError, match=r"^llama has no tokenizer: put tokenizer\.json beside its weights\.$"):
        twin_model("llama").generate("w5")


# --- several prompts ---------------------------------------------------------------------------------------------------

SEVERAL = ["w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15", "w20", "w30 w31 w32", "w20"]
HOW: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "seed": 4},
    {"temperature": 1.0, "top_p": 0.8, "seed": 1, "stop": ["w7", "w3 "]},
]


@pytest.mark.parametrize("name", CAUSAL)
def test_several_prompts_get_what_each_gets_alone(name: str):
    """Left padding is nothing to a model: positions learned (GPT-2, OPT) or rotary, windows of 8 (Gemma 2), ALiBi, experts."""
    model = small(name)
    for how in HOW:
        together = model.generate(SEVERAL, max_new_tokens=14, **how)
        assert together == alone(model, max_new_tokens=14, **how)
        assert (together[1] == together[3]) == (not how), "the same prompt twice, each sample with its own draws"


def alone(model: zoo.Model, *, seed: int = 0, **how: Any) -> list[str]:
    """What each of the prompts gets alone: prompt i from the seed `seed` + i."""
    return [model.generate(prompt, seed=seed + i, **how) for i, prompt in enumerate(SEVERAL)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_several_texts_of_one_prompt_follow_from_the_seed(name: str):
    model, how = small(name), {"max_new_tokens": 8, "temperature": 1.2}
    texts = model.generate("w20", count=4, seed=3, **how)
    assert texts == [model.generate("w20", seed=3 + i, **how) for i in range(4)] and len(set(texts)) == 4
    assert model.generate("w20", count=2, seed=4, **how) == texts[1:3] == model.generate(["w20"] * 2, seed=4, **how)
    assert model.generate("w20", count=1, seed=3, **how) == texts[0]
    pairs = model.generate(["w20", "w30"], count=2, seed=3, **how)
    assert pairs == [texts[:2], [model.generate("w30", seed=seed, **how) for seed in (5, 6)]]
    assert len(model.generate("w20", count=2, seed=2**63 - 1, **how)) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": 2}, "count = 2: at temperature 0 all texts are the likeliest one; set a temperature, such as 1."),
        ({"count": 0}, "count = 0: input should be greater than or equal to 1."),
        ({"count": 2.5}, "count = 2.5: input should be a whole number."),
        ({"count": True}, "count = True: input should be a whole number."),
        (
            {"count": 2, "temperature": 1, "stream": True},
            "stream=True gives the pieces of one text; leave out count, or stream.",
        ),
    ],
)
def test_a_count_that_does_not_fit_is_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(RequestError) as caught:
        small("llama").generate("w20", **options)
    assert str(caught.value) == sentence


MORE = {
    "mistral": ("MistralConfig", "MistralForCausalLM", {**TABLE["llama-gqa"][2], "sliding_window": 8}),
    "mpt": (
        "MptConfig",
        "MptForCausalLM",
        {"vocab_size": 96, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    ),
    "gpt-neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_heads": 4,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "bert-decoder": ("BertConfig", "BertLMHeadModel", {**TABLE["bert"][2], "is_decoder": True}),
}


@pytest.mark.parametrize("name", MORE)
def test_several_prompts_of_architectures_beside_the_twins(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TABLE, name, MORE[name])
    model = small(name)
    together = model.generate(SEVERAL, max_new_tokens=14, temperature=1.3)
    assert together == alone(model, max_new_tokens=14, temperature=1.3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_prompts_that_fill_the_context_differently(name: str):
    model, prompts = small(name), ["w5 " * 60, "w6 w7", "w8 " * 63]
    together = model.generate(prompts, max_new_tokens=30)
    assert together == [model.generate(prompt, max_new_tokens=30) for prompt in prompts]
    assert [len(text.split()) for text in together] == [4, 30, 1]
    assert model.generate(prompts[1:2], max_new_tokens=3) == [model.generate(prompts[1], max_new_tokens=3)]


def test_several_prompts_are_several_texts(monkeypatch: pytest.MonkeyPatch):
    model = small("llama")
    asked: list[int] = []
    monkeypatch.setattr(
        readers.Reader,
        "logits",
        lambda self, plain=readers.Reader.logits: asked.append(len(self.step_BT)) or plain(self),
    )
    model.generate(SEVERAL, max_new_tokens=5)
    assert set(asked) == {4} and len(asked) <= 5
    for prompts, sentence in (
        ([], "The prompt is empty: pass some text to continue."),
        (["w5", ""], "The prompt is empty: pass some text to continue."),
        (["w5", "w6 " * 70], "The prompt has 70 tokens; llama takes 64 in all."),
    ):
        with pytest.raises(RequestError) as caught:
            model.generate(prompts)
        assert str(caught.value) == sentence
    with pytest.raises(
        RequestError, match=r"^stream=True gives the pieces of one text; pass one prompt, or leave it out\.$"
    ):
        model.generate(SEVERAL, stream=True)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_sample_follows_from_its_seed_and_leaves_the_random_state(model: zoo.Model):
    torch.manual_seed(1), random.seed(1), numpy.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()

    def sample(seed: int, **options: Any) -> list[int]:
        return list(next_tokens(model, [5, 6, 7], 24, seed=seed, **{"temperature": 1.0, **options}))

    one = sample(1)
    torch.rand(3)
    assert sample(1) == one != sample(2)
    torch.set_rng_state(states[0])
    assert sample(1, top_p=0.5) != one
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_cold_sample_is_the_greedy_one(model: zoo.Model, temperature: float):
    assert list(next_tokens(model, [5, 6], 12, temperature=temperature)) == list(next_tokens(model, [5, 6], 12))
    assert list(next_tokens(model, [5, 6], 12, temperature=2.0, top_p=1e-9)) == list(next_tokens(model, [5, 6], 12))


@pytest.mark.quick
def test_nucleus_sampling_keeps_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((0.5, {0}), (0.7, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        assert {sampling.pick(logits, 1.0, top_p, generator) for _ in range(300)} == kept


@pytest.mark.quick
@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_with_a_cache_is_greedy_without(name: str):
    model = twin_model(name)
    ids = tokens(batch=1, length=6)[0].tolist()
    cached = list(next_tokens(model, ids, 10))
    plain = list(ids)
    with torch.no_grad():
        for _ in range(10):
            plain.append(int(model.module(input_ids=torch.tensor([plain]), use_cache=False).logits[0, -1].argmax()))
    assert cached == plain[6:]


@pytest.mark.quick
def test_generation_reads_a_saved_model(model: zoo.Model, tmp_path: Path):
    again = zoo.load(model.save(tmp_path / "saved"))
    assert again.generate("def add", max_new_tokens=20) == model.generate("def add", max_new_tokens=20)


def test_the_ends_of_a_generation_config_stay_when_saved(tmp_path: Path):
    twin("llama").save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    model = zoo.load(tmp_path / "plain")
    assert end_tokens(model) == end_tokens(zoo.load(model.save(tmp_path / "saved"))) == {2, 7}
