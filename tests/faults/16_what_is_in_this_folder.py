"""Folders of other kinds: the sentence should say what the folder holds and what to do; a BERT without `architectures` should not become a causal model."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T
from zoo_compress import apply

import zoo

torch.manual_seed(0)
root = Path(tempfile.mkdtemp())
bad = []
text = T.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320)
eye = T.CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
)
T.LlavaForConditionalGeneration(T.LlavaConfig(text_config=text, vision_config=eye)).save_pretrained(root / "llava")
T.WhisperForConditionalGeneration(
    T.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=320,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
).save_pretrained(root / "whisper")
(root / "adapter").mkdir()
(root / "adapter" / "adapter_config.json").write_text("{}")
(root / "gguf").mkdir()
(root / "gguf" / "m-q4.gguf").write_bytes(b"GGUF")
for name, word in {"llava": "vision", "whisper": "speech", "adapter": "adapter", "gguf": "GGUF"}.items():
    try:
        zoo.load(root / name)
        said = "loads"
    except Exception as error:
        said = str(error).removeprefix(str(root))
    right = word.lower() in said.replace(name, "").lower()
    bad += [] if right else [name]
    print("clear  " if right else "UNCLEAR", f"{name}: {said[-170:]}")
bert = T.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=320)
T.BertForMaskedLM(bert).save_pretrained(root / "bert")
c = json.loads((root / "bert" / "config.json").read_text())
c.pop("architectures")
(root / "bert" / "config.json").write_text(json.dumps(c))
z = zoo.load(root / "bert")
wrong = z.spec.task == "causal-lm"
bad += ["bert"] * wrong
print(
    "WRONG" if wrong else "right",
    "BERT without architectures:",
    type(z.module).__name__,
    z.spec.task,
    "is_decoder =",
    z.module.config.is_decoder,
)
T.AlbertForMaskedLM(
    T.AlbertConfig(
        vocab_size=320,
        embedding_size=16,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
    )
).save_pretrained(root / "albert")
try:
    apply(zoo.load(root / "albert"), "quantize.int8")
    print("right ALBERT quantize.int8")
except Exception as error:
    bad.append("albert")
    print("UNCLEAR ALBERT quantize.int8 with its default target:", type(error).__name__, str(error)[:140])
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
