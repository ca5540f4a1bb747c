"""A published checkpoint of a class that transformers has, whose config.json still names the code it once came with (auto_map)."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as T

import zoo

root = Path(tempfile.mkdtemp())
bad = []
small = dict(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=320,
    max_position_embeddings=64,
)
for name, extra in {"Phi3": {"pad_token_id": 0}, "Falcon": {}, "StableLm": {}, "Olmo": {"pad_token_id": 0}}.items():
    place = root / name
    torch.manual_seed(0)
    model = getattr(T, f"{name}ForCausalLM")(getattr(T, f"{name}Config")(**small, **extra)).eval()
    model.save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": f"configuration_x.{name}Config",
        "AutoModelForCausalLM": f"modeling_x.{name}ForCausalLM",
    }
    (place / "config.json").write_text(json.dumps(config))
    ids = torch.arange(1, 9)[None]
    same = torch.equal(
        T.AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False)(ids).logits, model(ids).logits
    )
    try:
        zoo.load(place)
        said = "loads"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[-90:]}"
        bad.append(name)
    print(f"{name}: transformers without remote code loads it, same logits: {same}; zoo: {said}")
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
