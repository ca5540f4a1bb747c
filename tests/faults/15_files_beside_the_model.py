"""Files beside the weights that nobody asked to read: an unfinished checkpoint-5/, Mistral's consolidated.safetensors, a Git LFS pointer, metadata that is null."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T
from safetensors import safe_open
from safetensors.torch import save_file

import zoo

torch.manual_seed(0)
root = Path(tempfile.mkdtemp())
bad = []


def base(name, **how):
    T.LlamaForCausalLM(
        T.LlamaConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=320,
            max_position_embeddings=64,
        )
    ).save_pretrained(root / name, **how)
    return root / name


a = base("trained")
(a / "checkpoint-5").mkdir()
(a / "checkpoint-5" / "model.safetensors").write_bytes((a / "model.safetensors").read_bytes()[:100])
try:
    zoo.load(a)
    print("right unfinished checkpoint-5/ beside a whole model")
except Exception as error:
    bad.append("nested")
    print("WRONG whole model beside an unfinished checkpoint-5/ is refused:", str(error)[-120:])
b = base("sharded", max_shard_size="100KB")
save_file({"tok_embeddings.weight": torch.zeros(8, 8, dtype=torch.bfloat16)}, b / "consolidated.safetensors")
c = json.loads((b / "config.json").read_text())
c.pop("dtype", None)
(b / "config.json").write_text(json.dumps(c))
runs, planned = zoo.load(b).dtype, zoo.load(b, device="meta").dtype
bad += ["consolidated"] * (runs != planned)
print(
    "right" if runs == planned else "WRONG",
    "shards in float32 beside consolidated.safetensors in bfloat16: runs in",
    runs,
    "planned in",
    planned,
)
d = base("pointer")
(d / "model.safetensors").write_text(
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 1234567\n"
)
try:
    zoo.load(d)
except Exception as error:
    said = str(error)[-120:]
    bad += ["lfs"] * ("LFS" not in said)
    print("right" if "LFS" in said else "UNCLEAR", "Git LFS pointer:", said)
e = base("null")
raw = (e / "model.safetensors").read_bytes()
n = int.from_bytes(raw[:8], "little")
head = json.loads(raw[8 : 8 + n])
head["__metadata__"] = None
text = json.dumps(head).encode()
text += b" " * (-len(text) % 8)
(e / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])
with safe_open(e / "model.safetensors", "pt") as file:
    print("safetensors itself reads", len(list(file.keys())), "tensors of a header whose __metadata__ is null")
try:
    zoo.load(e)
    print("right null metadata")
except Exception as error:
    bad.append("null metadata")
    print("WRONG null metadata:", str(error)[-130:])
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
