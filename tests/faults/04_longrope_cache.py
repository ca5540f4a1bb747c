"""Phi-3 with LongRoPE: past original_max_position_embeddings the frequencies change, and keys in the cache were made with the old ones."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers as T

import zoo
from zoo.family.text.generate import next_tokens

torch.manual_seed(0)
torch.set_num_threads(1)
place = Path(tempfile.mkdtemp()) / "m"
cfg = T.Phi3Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=320,
    max_position_embeddings=64,
    original_max_position_embeddings=16,
    rope_scaling={"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8},
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
)
T.Phi3ForCausalLM(cfg).eval().save_pretrained(place)
z = zoo.load(place)
ids = [37, 5, 99, 18, 250, 61]
got = list(next_tokens(z, ids, 24))
seq = list(ids)
with torch.no_grad():
    for _ in range(24):
        seq.append(int(z.module(input_ids=torch.tensor([seq]), use_cache=False).logits[0, -1].argmax()))
    theirs = (
        T.AutoModelForCausalLM.from_pretrained(place)
        .generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0, len(ids) :]
        .tolist()
    )
want = seq[len(ids) :]
first = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), None)
print("without a cache, and transformers' generate:", want == theirs, want[8:16])
print(
    "zoo's generation                          :",
    got[8:16],
    "first difference at token",
    first,
    "= position",
    None if first is None else first + len(ids),
)
wrong = got != want
print("FAILS" if wrong else "fine")
sys.exit(wrong)
