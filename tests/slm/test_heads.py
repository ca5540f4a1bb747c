"""Training reads the body and applies the head to chosen rows: that is what the whole model says, or the whole one is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from twins import TWINS, tokens, twin
from zoo_slm import heads
from zoo_slm.language import TransformersText

from zoo.catalog import ModelSpec
from zoo.model.model import Model

pytestmark = pytest.mark.quick

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# architectures that scale their logits
SCALED = {
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SMALL, logits_scaling=8.0, tie_word_embeddings=False)
    ),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SMALL, logit_scale=0.25)),
}


class Doubled(transformers.LlamaForCausalLM):
    """A class that does to its logits what no config says."""

    def forward(self, *args: Any, **more: Any) -> Any:
        out = super().forward(*args, **more)
        out.logits = out.logits * 2
        return out


class Capped(transformers.LlamaForCausalLM):
    """Its cap shows in large logits alone."""

    def forward(self, *args: Any, **more: Any) -> Any:
        out = super().forward(*args, **more)
        out.logits = torch.tanh(out.logits / 30) * 30
        return out


class Factored(transformers.LlamaForCausalLM):
    """A factor of its config that is 1, so that only another config of the class would show it."""

    def forward(self, *args: Any, **more: Any) -> Any:
        out = super().forward(*args, **more)
        out.logits = out.logits * self.config.output_multiplier
        return out


def of(cls: type[Any], **more: Any) -> Any:
    torch.manual_seed(0)
    return cls(transformers.LlamaConfig(**SMALL, **more)).eval()


@pytest.mark.parametrize(("cls", "more"), [(Doubled, {}), (Capped, {}), (Factored, {"output_multiplier": 1.0})])
def test_what_no_one_knows_of_is_not_split(cls: type[Any], more: dict[str, Any]):
    module = of(cls, **more)
    assert heads.body_and_head(module) is None
    spec = ModelSpec(
        name="m",
        family="transformers",
        modality="text",
        task="causal-lm",
        plugin="zoo_slm",
        config=module.config.to_dict(),
    )
    model, ids = Model(module, TransformersText(), spec), torch.arange(8)[None]
    with torch.no_grad():
        rows = model.family.rows(model, {"input_ids": ids, "labels": ids}, ("label",))["label"]
        assert torch.equal(rows.head(rows.hidden), module(ids).logits[0])


def test_asking_leaves_no_trace():
    """Neither in the global random state nor in the module, also under inference mode and without values."""
    module, state = of(transformers.LlamaForCausalLM).train(), torch.random.get_rng_state()
    with torch.inference_mode():
        assert heads.body_and_head(module) is not None
    assert all(part.training for part in module.modules()) and torch.equal(state, torch.random.get_rng_state())
    with torch.device("meta"):
        assert heads.body_and_head(of(transformers.LlamaForCausalLM)) is not None
        assert heads.body_and_head(of(Doubled)) is None


def test_without_a_twin_the_module_itself_is_asked():
    """Mamba has no attention heads that a twin could have fewer of; its body stays in float32."""
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    module: Any = transformers.MambaForCausalLM(config).to(torch.bfloat16).train()
    split = heads.body_and_head(module)
    assert split is not None and all(part.training for part in module.modules())
    body, head = split
    ids = torch.arange(8)[None]
    module.eval()
    with torch.no_grad():
        assert torch.equal(head(body(input_ids=ids, use_cache=False).last_hidden_state), module(ids).logits)


def test_llama_4_is_split():
    """Its class names a prefix that it does not have."""
    config = transformers.Llama4TextConfig(
        **SMALL, intermediate_size_mlp=64, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    )
    module: Any = transformers.Llama4ForCausalLM(config).eval()
    split = heads.body_and_head(module)
    assert split is not None
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            split[1](split[0](input_ids=ids, use_cache=False).last_hidden_state), module(ids).logits
        )


@pytest.mark.parametrize("name", [*TWINS, *SCALED])
def test_the_head_on_the_body_is_the_model(name: str):
    module: Any = SCALED[name]().eval() if name in SCALED else twin(name)
    split = TransformersText().body_and_head(module)
    if split is None:
        assert name == "bert"  # whose head has layers of its own
        return
    body, head = split
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(head(body(input_ids=ids, use_cache=False).last_hidden_state), module(ids).logits)


def test_rows_of_rwkv_have_gradients():
    """What it keeps for the next token it writes in place, which gradients of the whole forward do not survive."""
    module = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=32)
    ).eval()
    spec = ModelSpec("rwkv", "transformers", "text", "causal-lm", plugin="zoo_slm", config=module.config.to_dict())
    model = Model(module, TransformersText(), spec)
    ids = torch.arange(1, 9)[None]
    rows = model.family.rows(model, {"input_ids": ids, "labels": ids}, ["label"])["label"]
    rows.head(rows.hidden).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
