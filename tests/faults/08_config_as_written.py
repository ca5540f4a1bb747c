"""config.json is read as plain JSON where transformers reads more into it: {"__float__": "Infinity"} (Mamba 2, hybrids), and keys at their default left out."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T

import zoo

torch.manual_seed(0)
torch.set_num_threads(1)
root = Path(tempfile.mkdtemp())
bad = []
small = dict(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=320,
    max_position_embeddings=64,
)
state = dict(mamba_n_heads=8, mamba_d_state=8, mamba_expand=2, mamba_n_groups=1, mamba_chunk_size=8)
made = {
    "granite-hybrid": T.GraniteMoeHybridForCausalLM(
        T.GraniteMoeHybridConfig(
            **small, **state, layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=64
        )
    ),
    "falcon-h1": T.FalconH1ForCausalLM(T.FalconH1Config(**small, **state, mamba_d_ssm=128, mamba_d_head=16)),
    "bamba": T.BambaForCausalLM(T.BambaConfig(**small, **state, attn_layer_indices=[1])),
    "mamba2": T.Mamba2ForCausalLM(
        T.Mamba2Config(
            hidden_size=64,
            num_hidden_layers=2,
            vocab_size=320,
            num_heads=8,
            head_dim=16,
            state_size=8,
            expand=2,
            n_groups=1,
            chunk_size=8,
        )
    ),
    "gpt2-defaults": T.GPT2LMHeadModel(T.GPT2Config(n_embd=32, n_layer=2, n_head=2)),
}
for name, model in made.items():
    place = root / name
    model.eval().save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    if name == "gpt2-defaults":
        config.pop("vocab_size")
        (place / "config.json").write_text(json.dumps(config))
    else:
        print(name, "config.json says time_step_limit =", config["time_step_limit"])
    T.AutoModelForCausalLM.from_pretrained(place)
    for what, do in {
        "load": lambda: zoo.load(place),
        "skeleton (plan)": lambda: zoo.load(place, device="meta"),
        "save": lambda: zoo.load(place).save(root / f"{name}-out"),
        "example batch": lambda: zoo.load(place).family.example(zoo.load(place)),
    }.items():
        try:
            do()
            print("  right", name, what)
        except Exception as error:
            bad.append(name)
            print("  WRONG", name, what, "->", type(error).__name__, str(error).split("doesn't")[0][-130:])
print("FAILS" if bad else "fine", sorted(set(bad)))
sys.exit(bool(bad))
