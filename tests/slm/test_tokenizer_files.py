"""Tokenizers in the files that people have: read, or said to be missing when the model is loaded."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers
from outsiders import zoo as command
from tiny import tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from twins import twin

import zoo
from zoo.errors import ArtifactError, ZooWarning

PROTOCOL_BUFFER = "\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without a tokenizer."""
    twin("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer_config.json": '{"tokenizer_class": "ByT5Tokenizer"}'}, "of tokenizer_config.json alone"),
        ({"tekken.json": "{}"}, "of tekken.json alone"),
        ({"qwen.tiktoken": "IQ== 0\n"}, "of qwen.tiktoken alone"),
        ({"merges.txt": "#version: 0.2\na b\n"}, "of merges.txt alone"),
        (
            {
                "vocab.txt": "<cls>\n<pad>\n<eos>\n<unk>\na\n<mask>\n",
                "tokenizer_config.json": '{"tokenizer_class": "EsmTokenizer"}',
            },
            "EsmTokenizer of transformers does not say which text a token covers",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_a_model_that_is_loaded_without_its_tokenizer_says_so(folder: Path, files: dict[str, str], says: str):
    write(folder, files)
    for device in (None, "meta"):
        with pytest.warns(ZooWarning, match=f"model is loaded without a tokenizer: .*{says}.*; put tokenizer.json"):
            assert zoo.load(folder, device=device).processor is None


def test_a_command_says_it_once_and_as_other_warnings(folder: Path):
    write(folder, {"tekken.json": "{}"})
    done = command("inspect", str(folder))
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: {folder} is loaded without a tokenizer: of tekken.json alone transformers makes none; "
        "put tokenizer.json beside its weights.\n"
    )
    assert command("-q", "inspect", str(folder)).stderr == ""


def test_where_nothing_is_missing_nothing_is_said(folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZooWarning)
        assert zoo.load(folder).processor is None
        tokenizer().save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')  # which cannot read it
        assert zoo.load(folder).processor.is_fast


def test_special_tokens_and_a_template_stay_whatever_class_is_named(folder: Path):
    """Of a class that no one has here, or one with code of its own, tokenizer.json is read as it is."""
    tokenizer().save_pretrained(folder)
    known = json.loads((folder / "tokenizer_config.json").read_text())
    for more in ({"tokenizer_class": "TheirTokenizer"}, {"auto_map": {"AutoTokenizer": ["own.Own", None]}}):
        told = {**known, "eos_token": "!", "chat_template": "{{ messages }}", **more}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        processor = zoo.load(folder).processor
        assert processor.eos_token == "!" and processor.chat_template == "{{ messages }}"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_settings_that_cannot_be_read_are_no_settings_that_are_not_there(folder: Path, file: str):
    tokenizer().save_pretrained(folder)
    for text in ("{", "[]"):
        (folder / file).write_text(text)
        with pytest.raises(ArtifactError, match=f"{file} is damaged: it holds no JSON object"):
            zoo.load(folder)


@pytest.mark.skipif(bool(find_spec("sentencepiece") or find_spec("tiktoken")), reason="what is missing is installed")
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer.model": PROTOCOL_BUFFER}, r"tokenizer.model cannot be read without sentencepiece: pip install"),
        ({"spiece.model": PROTOCOL_BUFFER}, r"spiece.model cannot be read without sentencepiece: pip install"),
        ({"tokenizer.model": "IQ== 0\nIg== 1\n"}, r"tokenizer.model cannot be read without tiktoken: pip install"),
    ],
)
def test_a_package_that_is_not_here_is_no_damage(
    folder: Path, files: dict[str, str], says: str, capfd: pytest.CaptureFixture[str]
):
    write(folder, files)
    with pytest.raises(ArtifactError, match=says):
        zoo.load(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"vocab.json": '{"a": 0}', "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'},
            "without merges.txt",
        ),
        (
            {"vocab.txt": "a\n", "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'},
            "code of its own, .* never runs code from a checkpoint; put tokenizer.json",
        ),
    ],
)
def test_a_tokenizer_that_needs_more_says_what(folder: Path, files: dict[str, str], says: str):
    write(folder, files)
    with pytest.raises(ArtifactError, match=says):
        zoo.load(folder)


def test_a_tokenizer_that_transformers_5_saved_is_what_its_file_says(tmp_path: Path) -> None:
    """Of Qwen2's type transformers makes a tokenizer of Qwen2's class, which splits words that this one keeps whole."""
    words = Tokenizer(WordLevel({"one": 0, "two": 1, "|": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    twin("qwen2").save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    assert zoo.load(tmp_path).processor("two one | three")["input_ids"] == [1, 0, 2, 3]
