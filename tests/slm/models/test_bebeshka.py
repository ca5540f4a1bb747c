"""Bebeshka against a literal reading of its equations, and what every architecture of ours must hold."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from slm.models import checks
from torch import Tensor
from zoo_slm.models.bebeshka import BebeshkaConfig, BebeshkaForMaskedLM

import zoo
from zoo.errors import ZooError

EXAMPLES = Path(__file__).parents[3] / "examples" / "train"
POSITIONS = "roberta.embeddings.position_embeddings.weight"  # there, and never read
PUBLISHED = {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "position_embedding_type": "relative_key_query",
    "vocab_size": 96,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "type_vocab_size": 1,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.15,
    "attention_probs_dropout_prob": 0.3,
}


def made(**changes: Any) -> Any:
    values = {key: value for key, value in PUBLISHED.items() if key not in ("model_type", "architectures")}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return checks.tiny(BebeshkaForMaskedLM, BebeshkaConfig(**{**values, **quiet, **changes}))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt() * weight + bias


def reference(w: dict[str, Tensor], ids: list[int], *, heads: int, farthest: int) -> Tensor:
    """Logits (T, V) of one text, by loops over heads, queries and keys."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    embedded = "roberta.embeddings"
    x = w[f"{embedded}.word_embeddings.weight"][ids] + w[f"{embedded}.token_type_embeddings.weight"][0]
    x = norm(f"{embedded}.LayerNorm", x)
    for layer in range(2):
        at = f"roberta.encoder.layer.{layer}"
        q, k, v = (linear(f"{at}.attention.self.{name}", x) for name in ("query", "key", "value"))
        table = w[f"{at}.attention.self.distance_embedding.weight"]
        size = q.shape[1] // heads
        mixed = torch.zeros_like(q)
        for head in range(heads):
            span = slice(head * size, (head + 1) * size)
            for i in range(len(ids)):
                scores = []
                for j in range(len(ids)):
                    distance = table[i - j + farthest]
                    scores.append(q[i, span] @ k[j, span] + q[i, span] @ distance + k[j, span] @ distance)
                shares = torch.softmax(torch.stack(scores) / math.sqrt(size), 0)
                mixed[i, span] = sum(share * v[j, span] for j, share in enumerate(shares))
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed))
        inner = linear(f"{at}.intermediate.dense", x)
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))  # gelu_new
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))
    x = linear("lm_head.dense", x)
    x = norm("lm_head.layer_norm", 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    return x @ w[f"{embedded}.word_embeddings.weight"].T + w["lm_head.bias"]


def test_logits_equal_the_literal_reference() -> None:
    model = made()
    ids = checks.tokens(model, batch=1, length=9)
    expected = reference(dict(model.named_parameters()), ids[0].tolist(), heads=4, farthest=23)
    checks.near(checks.logits(model, ids)[0], expected.detach(), 1e-9)


def test_it_holds_what_every_architecture_must(tmp_path: Path) -> None:
    model = made()
    checks.padded_equals_alone(model, causal=False)
    checks.eager_equals_sdpa(model)
    checks.gradients_reach_all(model, but=[POSITIONS])
    checks.checkpointing_keeps_gradients(model)
    checks.bf16_is_near(model)
    checks.roundtrip(model, tmp_path / "saved", task="masked-lm")


def test_only_distances_matter() -> None:
    """Position numbers change nothing: padding in front moves a text, and the table of positions is not read."""
    model = made()
    ids = checks.tokens(model, batch=1, length=6)
    before = checks.logits(model, ids)
    with torch.no_grad():
        model.get_parameter(POSITIONS).normal_()
    assert torch.equal(checks.logits(model, ids, position_ids=torch.arange(6)[None] + 5), before)


def test_as_many_tokens_as_distances_and_no_more() -> None:
    model = made()
    checks.logits(model, checks.tokens(model, length=24))
    with pytest.raises(ValueError, match="25 tokens are more than the 24 that the model takes"):
        checks.logits(model, checks.tokens(model, length=25))


def test_count_is_that_of_the_facts() -> None:
    facts = {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "position_embedding_type": "relative_key_query",
        "hidden_size": 560,
        "intermediate_size": 1412,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 8192,
        "max_position_embeddings": 128,
        "type_vocab_size": 1,
    }
    assert checks.params(facts, "masked-lm") == 16_424_920
    assert checks.params({"model_type": "bebeshka"}, "masked-lm") == 16_424_920


@pytest.mark.parametrize("repeated", [False, True])
def test_published_files_load_whole(tmp_path: Path, repeated: bool) -> None:
    """The names of transformers 4: the head's matrix left out or repeated, and a table of position numbers beside."""
    model = made()
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items()}
    head = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    kept = tensors if repeated else {name: tensor for name, tensor in tensors.items() if name not in head}
    place = checks.write_checkpoint(
        tmp_path / "hub", PUBLISHED, {**kept, "roberta.embeddings.position_ids": torch.arange(24)[None]}
    )
    loaded = zoo.load(place)
    assert type(loaded.module) is BebeshkaForMaskedLM
    assert loaded.spec.task == "masked-lm"
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    ids = checks.tokens(model)
    checks.near(checks.logits(loaded.module, ids), checks.logits(model, ids))


def test_an_incomplete_file_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {
        name: tensor.float()
        for name, tensor in made().state_dict().items()
        if "layer.1.attention.self.distance" not in name
    }
    place = checks.write_checkpoint(tmp_path / "hub", PUBLISHED, tensors)
    with pytest.raises(ZooError, match=r"layer\.1\.attention\.self\.distance_embedding\.weight' is missing"):
        zoo.load(place)


def test_other_position_types_are_refused() -> None:
    with pytest.raises(ValueError, match="position_embedding_type relative_key_query"):
        BebeshkaConfig(position_embedding_type="absolute")


def test_the_recipes_are_for_the_published_shapes() -> None:
    """What the paper's models are is in the catalogue, by which the recipes name them."""
    for name in ("bebeshka", "zlata"):
        recipe = tomllib.loads((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"))
        assert recipe["model"] == {**recipe["model"], "name": name, "weights": "random"}
        assert recipe["stage"][0]["use"] == "vocabulary.bpe"
