"""A checkpoint that says quantization_config (GPTQ, AWQ, ...) given as a plain model. Run: python 01_...py"""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path

import torch
import transformers as T

import zoo
from zoo.errors import ZooError

root = Path(tempfile.mkdtemp())
bad = 0


def base(path, **extra):
    torch.manual_seed(0)
    cfg = T.LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        max_position_embeddings=64,
    )
    T.LlamaForCausalLM(cfg).save_pretrained(path)
    place = path / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **extra}))
    return path


def say(what, do):
    global bad
    try:
        print(f"{what}: {do()}")
        bad += 1  # codes taken for weights, without a word
    except ZooError as e:
        print(f"{what}: one sentence: {str(e)[:150]}")
    except Exception as e:
        bad += 1
        print(f"{what}: NOT A SENTENCE: {type(e).__name__}: {str(e)[:120]}")


kinds = {
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "compressed-tensors": {"config_groups": {}},
    "torchao": {"quant_type": "int4_weight_only"},
    "hqq": {},
    "quanto": {"weights": "int8"},
    "aqlm": {},
}
for kind, more in kinds.items():
    place = base(root / kind, quantization_config={"quant_method": kind, **more})
    say(f"{kind:18s} load", lambda: zoo.load(place).params)
    say(
        f"{kind:18s} skeleton, as `zoo plan` builds it",
        lambda: f"{zoo.load(place, device='meta').params} parameters, as if it were not quantized",
    )
print("FAILS" if bad else "fine", bad, "raw errors, or loaded as weights")
sys.exit(bool(bad))
