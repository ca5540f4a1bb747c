"""Sentence encoders made by tests: a tiny transformer with a tokenizer of words, alone or as sentence-transformers keeps one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY, WIDTH = 96, 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
DENSE: dict[str, Any] = {
    "in_features": WIDTH,
    "out_features": 16,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
SENTENCES = ("w5 w6 w7", "w8", "w9 w10 w11 w12 w13 w14 w15", "W5 w6 w9 w90", "w20 w21 w5")
CONFIG = "sentence_bert_config.json"


def tokenizer(*, longest: int = 32) -> Any:
    """Words, between [CLS] and [SEP]; it tells capital letters from small ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: number for number, word in enumerate([*special, "W5", *(f"w{i}" for i in range(5, VOCABULARY))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, **names)


def transformer(kind: str = "bert", *, seed: int = 0, **changes: Any) -> Any:
    """A transformer without a head, with biases and gains that are not zero and one."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **{**SIZES, **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def plain_folder(path: Path, model: Any = None) -> Path:
    """A transformer as transformers saves it, with its tokenizer."""
    (model or transformer()).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def sentence_folder(
    path: Path,
    *,
    pooling: dict[str, Any] | None = None,
    after: Sequence[dict[str, Any] | None] = (None,),
    transformer_config: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    model: Any = None,
) -> Path:
    """A folder as sentence-transformers writes it.

    Args:
        after: what follows the pooling: None for Normalize, else the config of a Dense.
    """
    from safetensors.torch import save_file

    plain_folder(path, model)
    modules = [("Transformer", "", None), ("Pooling", "1_Pooling", pooling or {"pooling_mode_mean_tokens": True})]
    for place, config in enumerate(after, 2):
        kind = "Normalize" if config is None else "Dense"
        modules.append((kind, f"{place}_{kind}", config))
    for kind, folder, config in modules[1:]:
        (path / folder).mkdir()
        if config is not None:
            head = {"word_embedding_dimension": WIDTH} if kind == "Pooling" else {}
            write(path / folder / "config.json", head | config)
        if kind == "Dense":
            save_file(dense(config or {}), path / folder / "model.safetensors", metadata={"format": "pt"})
    listed = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, folder, _) in enumerate(modules)
    ]
    write(path / "modules.json", listed)
    write(path / CONFIG, transformer_config or {"max_seq_length": 8, "do_lower_case": False})
    write(path / "config_sentence_transformers.json", settings or {"prompts": {}, "default_prompt_name": None})
    return path


def dense(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a Dense module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        tensors = {f"linear.{name}": tensor.detach() for name, tensor in linear.named_parameters()}
        if config.get("use_residual") and config["in_features"] != config["out_features"]:
            tensors["residual.weight"] = torch.randn(config["out_features"], config["in_features"])
    return tensors


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
