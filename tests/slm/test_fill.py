"""Filling in: words for masks (BERT, RoBERTa kinds), and gaps in code (StarCoder2's format)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import small
from transformers import PreTrainedTokenizerFast
from twins import VOCABULARY

import zoo
from zoo import cli
from zoo.errors import RequestError, ZooError
from zoo.family.task import task_of
from zoo.family.text import generate
from zoo.family.text.generate import next_tokens

pytestmark = pytest.mark.quick

CODE = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<file_sep>", "<repo_name>")


def worded(*special: str, **named: str) -> Any:
    """A tokenizer of letters, lines and words "w10" ... with special tokens; with a mask it adds <s> ... </s>, as RoBERTa's does."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    first = ["<unk>", "<s>", "</s>", "<mask>", *special, "\n", "a", "b", ".py", "/", "zoo"]
    words = {word: number for number, word in enumerate([*first, *(f"w{i}" for i in range(len(first), VOCABULARY))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split(Regex(r"w\d+|\.py|zoo|."), "isolated"),
        ]
    )
    if "mask_token" in named:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(special),
        **named,
    )


@pytest.fixture(scope="module")
def masked() -> zoo.Model:
    return replace(small("bert"), processor=worded(mask_token="<mask>"))


@pytest.fixture(scope="module")
def coder() -> zoo.Model:
    return replace(small("llama"), processor=worded(*CODE))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_each_mask_gets_its_likeliest_words(masked: zoo.Model):
    text = "w20 <mask> w30 <mask>"
    found = masked.family.fill(masked, text, count=3)  # type: ignore[attr-defined]
    ids = masked.processor(text)["input_ids"]
    assert [ids[0], ids[2], ids[4], ids[5]] == [1, 3, 3, 2]
    with torch.no_grad():
        chances = masked.module(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    for words, place in zip(found, (2, 4), strict=True):
        best = chances[place].topk(3)
        assert [chance for _, chance in words] == pytest.approx(best.values.tolist())
        assert [masked.processor.convert_tokens_to_ids(word) for word, _ in words] == best.indices.tolist()
    lines = masked.generate(text, count=3).split("\n")
    assert len(lines) == 7 and lines[3] == "" and lines[0] == f"{100 * found[0][0][1]:5.1f} %  {found[0][0][0]}"
    assert "".join(masked.generate(text, count=3, stream=True)) == "\n".join(lines)
    assert masked.generate([text, "<mask> a"], count=1) == [
        masked.generate(text, count=1),
        masked.generate("<mask> a", count=1),
    ]
    assert (
        len(masked.generate("<mask>").split("\n")) == 5
        and len(masked.generate("<mask>", count=10**9).split("\n")) == VOCABULARY
    )


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ("a", {}, "bert fills in words, and the prompt leaves none out: write <mask> in place of one."),
        ("", {}, "The prompt is empty: pass some text to continue."),
        (5, {}, "The prompt is of type int: pass some text, or a list of texts."),
        ("\ud800", {}, "The prompt holds half a character at position 0, which is not Unicode text."),
        ("<mask>" + " a" * 70, {}, "The prompt has 73 tokens; bert takes 64 in all."),
        ("<mask>", {"count": 0}, "count = 0: input should be greater than or equal to 1."),
        ("<mask>", {"count": True}, "count = True: input should be a whole number."),
        (
            "<mask>",
            {"temperature": 1.0},
            "'temperature' is not an option of generate for bert, a masked-lm model. Options: count, stream.",
        ),
        ("<mask>", {"cont": 1}, "'cont' is not an option of generate. Did you mean 'count'? Options: count, stream."),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_text_that_cannot_be_filled_is_one_sentence(
    masked: zoo.Model, prompt: Any, options: dict[str, Any], sentence: str, stream: bool
):
    with pytest.raises(RequestError) as caught:
        masked.generate(prompt, stream=stream, **options)
    assert str(caught.value) == sentence


def test_who_fills_in_words_and_who_continues(masked: zoo.Model, coder: zoo.Model):
    with pytest.raises(RequestError, match=r"^llama is a causal-lm model; only masked-lm models fill in words\.$"):
        coder.family.fill(coder, "a <mask>")  # type: ignore[attr-defined]
    with pytest.raises(
        RequestError,
        match=r"^'suffix' is not an option of generate for bert, a masked-lm model\. Options: count, stream\.$",
    ):
        small("bert").generate("a", suffix="b")
    with pytest.raises(RequestError, match=r"^bert fills in no words: its tokenizer has no mask token\.$"):
        small("bert").generate("w5")
    with pytest.raises(
        RequestError,
        match=r"^BertForMaskedLM returns no cache of the tokens it read, so it cannot be generated from\.$",
    ):
        list(next_tokens(masked, [5, 6], 2))
    assert task_of(masked).samples(masked, ["a <mask>"], None)[0]["output"] == masked.generate("a <mask>")


def test_a_damaged_model_is_named(masked: zoo.Model):
    broken = masked.copy()
    with torch.no_grad():
        broken.module.cls.predictions.transform.dense.weight[:] = 3e38  # type: ignore[union-attr, index]
        broken.module.cls.predictions.transform.dense.bias[:] = 3e38  # type: ignore[union-attr, index]
    with pytest.raises(
        ZooError, match=r"^bert gives nan or infinity for the prompt: its weights are finite, and the first layer"
    ):
        broken.generate("<mask>")


def test_run_fills_in(masked: zoo.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    place = str(masked.save(tmp_path / "bert"))
    assert cli.main(["run", place, "-p", "a <mask> b", "--count", "2"]) == 0
    assert capsys.readouterr().out == masked.generate("a <mask> b", count=2) + "\n"
    assert cli.main(["run", place, "-p", "a <mask> b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == masked.generate("a <mask> b")
    assert cli.main(["run", place, "-p", "a <mask>", "--stop", "x"]) == 2
    assert (
        capsys.readouterr().err
        == "error: 'stop' is not an option of generate for bert, a masked-lm model. Options: count, stream.\n"
    )


# --- code -------------------------------------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, model: zoo.Model, prompt: Any = None, **options: Any) -> str:
    """The text that a request becomes, as tokens the model reads."""
    seen: list[list[int]] = []
    monkeypatch.setattr(generate, "next_tokens", lambda _model, ids, *_, **__: seen.append(ids) or iter(()))
    assert model.generate(prompt, **options) == ""
    return str(model.processor.decode(seen[0])).replace(" ", "")


def test_prompts_of_code_are_as_starcoder2_read_them(monkeypatch: pytest.MonkeyPatch, coder: zoo.Model):
    others = {"a.py": "w20", "b/a.py": "w21\nw22"}
    for prompt, options, text in (
        ("w30", {"suffix": "w31"}, "<fim_prefix>w30<fim_suffix>w31<fim_middle>"),
        ("w30", {"suffix": ""}, "<fim_prefix>w30<fim_suffix><fim_middle>"),
        (None, {"suffix": "w31"}, "<fim_prefix><fim_suffix>w31<fim_middle>"),
        ("w30", {"files": others}, "<file_sep>w20<file_sep>w21\nw22<file_sep>w30"),
        (
            "w30",
            {"files": others, "repo": "zoo", "path": "b.py"},
            "<repo_name>zoo<file_sep>a.py\nw20<file_sep>b/a.py\nw21\nw22<file_sep>b.py\nw30",
        ),
        ("w30", {"repo": "zoo", "path": "b.py"}, "<repo_name>zoo<file_sep>b.py\nw30"),
        (
            "w30",
            {"repo": "zoo", "path": "b.py", "suffix": "w31"},
            "<repo_name>zoo<file_sep><fim_prefix>b.py\nw30<fim_suffix>w31<fim_middle>",
        ),
        (
            "w30",
            {"files": {"a": "w20"}, "suffix": "w31"},
            "<file_sep>w20<file_sep><fim_prefix>w30<fim_suffix>w31<fim_middle>",
        ),
    ):
        assert asked(monkeypatch, coder, prompt, **options) == text


@pytest.mark.parametrize("mark", CODE)
def test_the_marks_of_the_format_end_what_is_written(monkeypatch: pytest.MonkeyPatch, coder: zoo.Model, mark: str):
    number, word = (coder.processor.convert_tokens_to_ids(one) for one in (mark, "w40"))
    monkeypatch.setattr(generate, "next_tokens", lambda *_, **__: iter([word, number, word]))
    assert coder.generate("w30", suffix="w31").strip() == "w40"
    assert coder.generate("w30").split() == ["w40", "w40"]  # a plain text goes on


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ("a", {"suffix": 5}, "suffix is a int, not text."),
        (5, {"suffix": "b"}, "prompt is a int, not text."),
        (
            "a",
            {"suffix": "b <fim_middle>"},
            "suffix holds <fim_middle>, which is a mark of the format itself; leave it out.",
        ),
        (
            "a",
            {"files": {"x": "<file_sep>"}},
            "files['x'] holds <file_sep>, which is a mark of the format itself; leave it out.",
        ),
        ("a", {"files": {"x": 5}}, "files['x'] is a int, not text."),
        ("a", {"files": {5: "x"}}, "path 5 is a int, not text."),
        ("a", {"files": ["x"]}, 'files is a list; give the text of each file by its path: files={"a.py": "import b"}.'),
        (
            "a",
            {"repo": "zoo"},
            "repo and path come together: a model is shown the paths of files where it is shown the name of their repository.",
        ),
        (
            "a",
            {"path": "b.py"},
            "repo and path come together: a model is shown the paths of files where it is shown the name of their repository.",
        ),
        ("\ud800", {"suffix": "b"}, "prompt holds half a character at position 0, which is not Unicode text."),
        (["a", "b"], {"suffix": "b"}, "Several prompts are plain texts: leave out suffix, or pass one prompt."),
        ("w30 " * 70, {"suffix": "b"}, "The prompt has 74 tokens; llama takes 64 in all."),
    ],
)
def test_code_that_cannot_be_asked_is_one_sentence(
    coder: zoo.Model, prompt: Any, options: dict[str, Any], sentence: str
):
    with pytest.raises(RequestError) as caught:
        coder.generate(prompt, **options)
    assert str(caught.value) == sentence


def test_a_tokenizer_without_the_marks_is_refused(masked: zoo.Model):
    plain = replace(small("llama"), processor=worded())
    with pytest.raises(
        RequestError, match=r"^llama fills no gap: its tokenizer has no <fim_prefix>, as that of StarCoder2 has\.$"
    ):
        plain.generate("a", suffix="b")
    with pytest.raises(
        RequestError, match=r"^llama reads no repository: its tokenizer has no <file_sep>, as that of StarCoder2 has\.$"
    ):
        plain.generate("a", files={"b": "a"})
    with pytest.raises(
        RequestError,
        match=r"^'suffix' is not an option of generate for bert, a masked-lm model\. Options: count, stream\.$",
    ):
        masked.generate("a", suffix="b")


def test_a_gap_is_filled_the_same_streamed_and_from_the_command_line(
    coder: zoo.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    place = str(coder.save(tmp_path / "coder"))
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text("w20")
    options: dict[str, Any] = {
        "suffix": "w31",
        "files": {"a.py": "w20"},
        "repo": "zoo",
        "path": "b.py",
        "max_new_tokens": 5,
    }
    text = coder.generate("w30", **options)
    assert text and "".join(coder.generate("w30", **options, stream=True)) == text
    given = ["--suffix", "w31", "--file", "a.py", "--repo", "zoo", "--path", "b.py", "--max-new-tokens", "5"]
    assert cli.main(["run", place, "-p", "w30", *given]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert cli.main(["run", place, "-p", "w30", "--file", "c.py"]) == 2
    assert capsys.readouterr().err == "error: c.py cannot be read: No such file or directory.\n"
