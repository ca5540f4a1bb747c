"""Between the head and the logits some models scale or cap: the rows that losses and perplexity use must be the model's own logits."""

import sys

import torch
import transformers as T
from zoo_slm.language import TransformersText

from zoo.catalog import ModelSpec
from zoo.model.model import build_random

torch.set_num_threads(1)
family, bad = TransformersText(), []
small = dict(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=320,
    max_position_embeddings=64,
)
cases = {
    "falcon_h1": T.FalconH1Config(
        **small,
        mamba_n_heads=8,
        mamba_d_ssm=128,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_expand=2,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        lm_head_multiplier=0.02,
    ),
    "gemma2 (understood)": T.Gemma2Config(**small, head_dim=16, final_logit_softcapping=3.0),
    "granite (understood)": T.GraniteConfig(**small, logits_scaling=8.0),
}
for name, config in cases.items():
    values = config.to_dict()
    values.pop("time_step_limit", None)
    spec = ModelSpec(
        name=name, family="transformers", modality="text", task="causal-lm", plugin="zoo_slm", config=values
    )
    model = build_random(family, spec)
    model.module.get_output_embeddings().weight.data.mul_(40)
    ids = torch.randint(1, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    with torch.no_grad():
        rows = family.rows(model, batch, ("label",))["label"]
        ours = rows.head(rows.hidden).float()
        own = family.forward(model, {"input_ids": ids}).flatten(0, 1).float()
        nats = [float(torch.nn.functional.cross_entropy(x, ids.flatten())) for x in (own, ours)]
    right = torch.allclose(own, ours, rtol=1e-3, atol=1e-3)
    bad += [] if right else [name]
    print(
        f"{'right' if right else 'WRONG'} {name}: largest logit {own.abs().max():.3f}, in the rows {ours.abs().max():.3f}; cross-entropy {nats[0]:.3f}, from the rows {nats[1]:.3f}"
    )
print("FAILS" if bad else "fine", bad)
sys.exit(bool(bad))
