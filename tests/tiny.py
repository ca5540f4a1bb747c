"""Real parts, made tiny: a checkpoint directory with a tokenizer, a folder of texts, and recipes over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twins import twin

VOCABULARY = 320

# name of a file -> its text
TEXTS = {
    f"{name}.py": "".join(
        f"def {name}_{i}(a, b):\n    # größer als {i} – naïve\n    return a {sign} b ** {i}\n\n\n" for i in range(24)
    )
    for name, sign in (("add", "+"), ("take", "-"), ("times", "*"), ("over", "/"), ("rest", "%"), ("join", "@"))
}

RECIPE = """\
# zoo compress recipe.toml

[recipe]
name = "tiny"

[model]
name = "./model"

[data]
train = "texts[:4]"
calibration = "texts[:2]"
test = "texts[4:]"

[[stage]]
use = "inherit"
layers = "first:1"

[[stage]]
use = "prune.structured"
ffn = 48

[[stage]]
use = "distill"
steps = 6
batch = 2
length = 16
warmup = 1

[[stage]]
use = "quantize.int8"

[evaluate]
tasks = ["perplexity"]
speed = false

[evaluate.perplexity]
max_tokens = 400
"""


def tokenizer(texts: list[str] | None = None) -> Any:
    """A byte-level BPE of 320 tokens, so that one character may be several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(texts or list(TEXTS.values()), trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", clean_up_tokenization_spaces=False)


def checkpoint(folder: Path, name: str = "llama-tied", **changes: Any) -> Path:
    """A plain transformers directory: the twin `name` with a vocabulary of 320, saved by transformers, and a tokenizer."""
    special = {} if name == "bert" else {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    module = twin(name, **{"vocab_size": VOCABULARY, **special, **changes})
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(folder: Path) -> Path:
    """A folder of six text files."""
    folder.mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def workplace(folder: Path) -> Path:
    """A folder with ./model, ./texts and recipe.toml; returns the recipe."""
    checkpoint(folder / "model")
    texts(folder / "texts")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.toml"
