"""Checkpoints with vocab.json + merges.txt or vocab.txt instead of tokenizer.json: transformers reads them, zoo has no tokenizer and saves without one."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T
from tokenizers import pre_tokenizers
from zoo_compress import apply

import zoo

torch.manual_seed(0)
root = Path(tempfile.mkdtemp())
bad = []
a = root / "gpt2"
T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=300, n_positions=64)).save_pretrained(a)
words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
(a / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
(a / "merges.txt").write_text("#version: 0.2\na b\n")
(a / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
b = root / "bert"
T.BertForMaskedLM(
    T.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=60,
        max_position_embeddings=64,
    )
).save_pretrained(b)
(b / "vocab.txt").write_text(
    "\n".join(
        [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *map(chr, range(97, 123)),
            *(f"##{chr(c)}" for c in range(97, 123)),
        ]
    )
)
(b / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
for place in (a, b):
    print(place.name, "transformers reads", T.AutoTokenizer.from_pretrained(place)("ab c")["input_ids"])
    model = zoo.load(place)
    print("  zoo's processor:", model.processor)
    bad += [place.name] * (model.processor is None)
    apply(model, "quantize.int8")
    model.save(root / f"{place.name}-out")
    print("  saved:", sorted(p.name for p in (root / f"{place.name}-out").iterdir()))
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
