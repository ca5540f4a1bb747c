"""A merged model whose folder still holds adapter_config.json: with the peft package installed the adapter is applied a second time. Needs peft."""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path

import torch
import transformers as T
from safetensors.torch import save_file

import zoo

try:
    import peft  # noqa: F401
except ImportError:
    print("skipped: peft is not installed (pip install --no-deps --target DIR peft; PYTHONPATH=DIR)")
    sys.exit(0)
torch.manual_seed(0)
root = Path(tempfile.mkdtemp())
place = root / "merged"
model = T.LlamaForCausalLM(
    T.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        max_position_embeddings=64,
    )
).eval()
model.save_pretrained(place)
save_file(
    {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{ab}.weight": torch.randn(*size)
        for i in range(2)
        for ab, size in (("A", (4, 64)), ("B", (64, 4)))
    },
    place / "adapter_model.safetensors",
    metadata={"format": "pt"},
)
(place / "adapter_config.json").write_text(
    json.dumps(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "somebody/base",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
        }
    )
)
z = zoo.load(place)
ids = torch.arange(1, 17)[None]
with torch.no_grad():
    off = float((z.family.forward(z, {"input_ids": ids}) - model(ids).logits).abs().max())
print(
    "largest difference to the weights in model.safetensors:",
    off,
    "q_proj is",
    type(z.module.model.layers[0].self_attn.q_proj),
)
try:
    z.save(root / "out")
    print("saved")
except Exception as error:
    print("save:", type(error).__name__, str(error)[:130])
print("FAILS" if off else "fine")
sys.exit(bool(off))
