"""Chats: the template of the model's own tokenizer, rendered as transformers renders it, and never for long."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from stages import small
from transformers import PreTrainedTokenizerFast
from zoo_compress.calibrate.watch import CalibrationOptions, batches

import zoo
from zoo import cli
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.family.text import chat, generate, tokens
from zoo.family.text.generate import next_tokens
from zoo.model.context import Context

CHATML = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + '\n' + message['content'] + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ ' [INST] ' + m['content'] + ' [/INST] ' }}{% endfor %}"
)
ASK = [{"role": "user", "content": "w5 w6"}]


def worded(*, template: str | None = None, adds_bos: bool = False) -> Any:
    """A tokenizer of whole words "w3" ... "w79", with the marks of a chat as special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "system", "user", "assistant"]
    words = {word: number for number, word in enumerate([*marks, *(f"w{i}" for i in range(3, 80))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    found.chat_template = template
    return found


def talking(template: str | None = CHATML, *, adds_bos: bool = False, name: str = "llama") -> zoo.Model:
    return replace(small(name), processor=worded(template=template, adds_bos=adds_bos))


def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Note which tokens generation starts from."""
    seen: list[list[int]] = []

    def noting(model: Any, ids: list[int], count: int, **options: Any) -> Any:
        seen.append(ids)
        return next_tokens(model, ids, count, **options)

    monkeypatch.setattr(generate, "next_tokens", noting)
    return seen


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_messages_are_what_transformers_makes_of_them(monkeypatch: pytest.MonkeyPatch, template: str, adds_bos: bool):
    model, seen = talking(template, adds_bos=adds_bos), read(monkeypatch)
    messages = [*ASK, {"role": "assistant", "content": "w7"}, {"role": "user", "content": "w8"}]
    assert isinstance(model.generate(messages=messages, max_new_tokens=2), str)
    expected = model.processor.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert seen == [expected] and expected.count(model.processor.bos_token_id) == (template == LLAMA)
    model.generate(messages=messages[:2], max_new_tokens=2)
    assert seen[1] == model.processor.apply_chat_template(messages[:2], continue_final_message=True, return_dict=False)


def test_a_prompt_begins_with_what_the_tokenizer_sets_at_its_start_once(monkeypatch: pytest.MonkeyPatch):
    model, seen = talking(adds_bos=True), read(monkeypatch)
    for prompt in ("w5 w6", "<s> w5 w6"):
        model.generate(prompt, max_new_tokens=1)
    assert seen == [model.processor("w5 w6")["input_ids"]] * 2 and seen[0][0] == 1 != seen[0][1]


def test_a_chat_streams_and_stops_like_a_text():
    model = talking()
    whole = model.generate(messages=ASK, max_new_tokens=20, temperature=1.5, seed=2)
    assert "".join(model.generate(messages=ASK, max_new_tokens=20, temperature=1.5, seed=2, stream=True)) == whole
    word = whole.split()[3]
    assert word not in model.generate(messages=ASK, max_new_tokens=20, temperature=1.5, seed=2, stop=[word])


def test_every_end_token_ends_an_answer(tmp_path: Path):
    model = talking()
    free = [*next_tokens(model, model.family.inputs(model, "w5 w6")[0], 8)]
    end = next(token for token in free[2:] if token not in free[:2])
    said = model.processor.decode(free[: free.index(end)])
    assert model.generate("w5 w6", max_new_tokens=8) != said
    model.module.generation_config.eos_token_id = [2, end]  # type: ignore[union-attr]
    assert model.generate("w5 w6", max_new_tokens=8).strip() == said
    assert tokens.end_tokens(model) == {2, end}
    model.module.generation_config.eos_token_id = None  # type: ignore[union-attr]
    listed = replace(model, spec=replace(model.spec, config={**model.spec.config, "eos_token_id": [2, end]}))
    assert listed.generate("w5 w6", max_new_tokens=8).strip() == said


# --- wrong messages ---------------------------------------------------------------------------------------------------

SHAPE = '{"role": "user", "content": "Hello"}'


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("hi", f"messages is a str; give a list of messages such as {SHAPE}."),
        (5, f"messages is a int; give a list of messages such as {SHAPE}."),
        ({"role": "user"}, f"messages is a dict; give a list of messages such as {SHAPE}."),
        ([], f"messages is empty; give at least one message, such as {SHAPE}."),
        (["hi"], f"Message 1 is a str; a message looks like {SHAPE}."),
        ([*ASK, {"role": "user"}], f"Message 2 has no 'content'; a message looks like {SHAPE}."),
        ([{"content": "hi"}], f"Message 1 has no 'role'; a message looks like {SHAPE}."),
        ([{"role": "user", "content": None}], "Message 1: its content is a NoneType, not text."),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "Message 1: its content is a list, not text."),
        (
            [{"role": "usr", "content": "a"}],
            "Message 1: 'usr' is no role. Did you mean 'user'? Roles: system, user, assistant, tool, developer.",
        ),
        (
            [{"role": "user", "content": "\ud800"}],
            "Message 1 holds half a character at position 0, which is not Unicode text.",
        ),
    ],
)
def test_wrong_messages_are_one_sentence(messages: Any, sentence: str):
    for template in (CHATML, None):
        with pytest.raises(RequestError) as caught:
            talking(template).generate(messages=messages)
        assert str(caught.value) == sentence


def test_a_model_without_a_template_names_the_way_out():
    with pytest.raises(
        RequestError,
        match=r"^llama has no chat template, .*: give it the text itself as its prompt, or set model.processor.chat_template\.$",
    ):
        talking(None).generate(messages=ASK)
    with pytest.raises(RequestError, match=r"^messages take the place of a prompt: leave out the prompt, suffix\.$"):
        talking().generate("w5", messages=ASK, suffix="w6")
    with pytest.raises(
        RequestError,
        match=r"^'messages' is not an option of generate for bert, a masked-lm model\. Options: count, stream\.$",
    ):
        small("bert").generate(messages=ASK)


def test_a_chat_longer_than_the_context_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match=r"^The prompt has \d+ tokens; llama takes 64 in all\.$"):
        talking().generate(messages=[{"role": "user", "content": "w5 " * 70}])
    with pytest.raises(RequestError, match=r"^The chat has 30,0\d\d characters; llama reads at most 4,096\.$"):
        talking().generate(messages=[{"role": "user", "content": "w5 " * 10_000}])


# --- templates from anybody -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{{ raise_exception('Only user and assistant') }}",
            "The chat template of llama refuses these messages: Only user and assistant.",
        ),
        ("{{ tools[0].name }}", "The chat template of llama needs what these messages lack: None has no element 0."),
        (
            "{{ ''.__class__.__mro__ }}",
            "The chat template of llama tries what no template may: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        (
            "{{ cycler.__init__.__globals__ }}",
            "The chat template of llama tries what no template may: access to attribute '__init__' of 'type' object is unsafe.",
        ),
        (
            "{{ (''|attr('__class__')).x }}",
            "The chat template of llama tries what no template may: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        (
            "{{ messages.append(1) }}",
            "The chat template of llama tries what no template may: access to attribute 'append' of 'list' object is unsafe.",
        ),
        (
            "{% for i in range(10**9) %}{% endfor %}",
            "The chat template of llama fails: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
        ),
        ("{% include 'x' %}", "The chat template of llama fails: no loader for this environment specified."),
        ("{% if %}", "The chat template of llama fails: Expected an expression, got 'end of statement block'."),
        ("{{ 1 / 0 }}", "The chat template of llama fails: division by zero."),
        (
            "{{ raise_exception('a\nb\x1b[31m' ~ 'x' * 9999) }}",
            "The chat template of llama refuses these messages: a b\\x1b[31mxxx",
        ),
        ("{{ 'x' * 5000 }}", "The chat has 5,000 characters; llama reads at most 4,096."),
        ("", "llama has no chat template"),
        ("{# #}", "The prompt '' has no token that llama knows: pass some text to continue."),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "The chat template of llama fails: maximum recursion depth exceeded",
        ),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: str, sentence: str):
    with pytest.raises(RequestError) as caught:
        talking(template).generate(messages=ASK)
    assert str(caught.value).startswith(sentence) and (not sentence.endswith(".") or str(caught.value) == sentence)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{% set n = range(100000) %}{% for i in n %}{% for j in n %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ ('%0' ~ 10**9 ~ 'd')|format(1) }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ messages|tojson(indent=10**10) }}",
    ],
    ids=["loops", "repeats", "format", "power", "doubling", "indent"],
)
def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch, template: str):
    monkeypatch.setattr(chat, "SECONDS", 1)
    held = len(list(Path("/proc/self/fd").iterdir())), psutil.Process().children()
    with pytest.raises(
        RequestError,
        match=r"^The chat template of llama (was stopped: it takes more than 1 seconds or 256 MB|fails: .*)\.$",
    ):
        talking(template).generate(messages=ASK)
    assert held == (len(list(Path("/proc/self/fd").iterdir())), psutil.Process().children())  # nothing is left behind


def test_a_child_that_is_not_heard_of_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "PATIENCE", 0.2)
    assert chat._confined(lambda: time.sleep(60) or "", 10) == ("", "")


def test_a_template_changes_nothing_outside(tmp_path: Path):
    inside = {"n": 0}

    def work() -> str:
        inside["n"] = 1
        try:
            (tmp_path / "file").write_text("x" * 9)
        except OSError as error:
            return f"no: {error.strerror}"
        return "written"

    assert chat._confined(work, 99)[1] in ("no: File too large", "") and inside == {"n": 0}
    assert not (tmp_path / "file").exists() or not (tmp_path / "file").read_text()


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking().save(tmp_path_factory.mktemp("saved") / "chatty")


def test_run_chats(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    model = zoo.load(saved)
    told = [{"role": "system", "content": "w9"}, *ASK]
    for args, messages in ((["--chat"], ASK), (["--system", "w9"], told)):
        assert cli.main(["run", str(saved), "-p", "w5 w6", *args, "--max-new-tokens", "6"]) == 0
        assert capsys.readouterr().out == model.generate(messages=messages, max_new_tokens=6) + "\n"


def test_run_converses_on_a_terminal(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    typed = iter(["w5 w6", "", "w7"])

    def typing(_prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", typing)
    assert cli.main(["run", str(saved), "--chat", "--max-new-tokens", "4"]) == 0
    model = zoo.load(saved)
    first = model.generate(messages=ASK, max_new_tokens=4)
    second = model.generate(
        messages=[*ASK, {"role": "assistant", "content": first}, {"role": "user", "content": "w7"}], max_new_tokens=4
    )
    assert capsys.readouterr().out == f"{first}\n{second}\n\n"


def test_rendering_leaves_the_random_state():
    before = torch.get_rng_state()
    talking().generate(messages=ASK, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


# --- records as chats, which calibration reads --------------------------------------------------------------------------


def records(*fields: dict[str, str]) -> Dataset:
    return Dataset("some.jsonl", [Sample(dict(each), f"some.jsonl:{i}") for i, each in enumerate(fields, 1)])


def test_records_become_chats_as_transformers_writes_them() -> None:
    model = talking()
    made = model.family.chats(model, records({"text": "w5 w6"}, {"prompt": "w7", "text": "w8"}))
    asked = model.processor.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    talk = [{"role": "user", "content": "w7"}, {"role": "assistant", "content": "w8"}]
    answered = model.processor.apply_chat_template(talk, tokenize=False, continue_final_message=True)
    assert [(sample.text, sample.where) for sample in made] == [(asked, "some.jsonl:1"), (answered, "some.jsonl:2")]


def test_calibration_reads_chats_where_the_recipe_says_so() -> None:
    model, data = talking(), records(*({"text": f"w{i} w{i + 1}"} for i in range(3, 40)))
    context = Context(data={"calibration": data})
    plain, chats = (
        batches(model, CalibrationOptions(samples=2, length=16, batch=2, chat=said), context, stage="test")[0]
        for said in (False, True)
    )
    start = model.processor.convert_tokens_to_ids("<|im_start|>")
    assert not bool((plain["input_ids"] == start).any())
    assert bool((chats["input_ids"] == start).any())


def test_a_record_that_the_template_refuses_is_named() -> None:
    model = talking("{% if 'w9' in messages[0]['content'] %}{{ raise_exception('no w9') }}{% endif %}hello")
    with pytest.raises(DataError, match=r"some\.jsonl:2: The chat template of llama refuses these messages: no w9"):
        model.family.chats(model, records({"text": "w5"}, {"text": "w9"}))


def test_a_model_without_a_template_is_told_to_leave_it_out() -> None:
    model = talking(None)
    with pytest.raises(RequestError, match=r"llama has no chat template.* leave out chat = true"):
        model.family.chats(model, records({"text": "w5"}))


def test_a_family_without_chats_is_told_to_leave_it_out() -> None:
    model = zoo.load("tiny-vlm")
    with pytest.raises(RequestError, match="tiny-vlm reads its data in its own way already: leave out chat = true"):
        model.family.chats(model, records({"text": "w5"}))
