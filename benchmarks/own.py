"""Speed of the architectures written here, each against the nearest class of transformers at equal shape, interleaved.

python benchmarks/own.py [--only phonelm,slimlm] [--width 512] [--layers 8] [--repeats 5] [--json FILE]

Random weights in fp32. Prefill is one pass over 256 tokens; decoding is greedy, 32 tokens after 16, with a cache. The nearest
class is Llama, but GPT-2 for SlimLM (learned positions), RoBERTa for Bebeshka and Mixtral for the experts of MiniCPM. What is
equal: width, FFN width, layers, heads, key/value heads, vocabulary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from zoo_slm.language import TransformersText

from zoo.family.text.generate import next_tokens
from zoo.model.model import Model
from zoo.plugins.declarations import ModelSpec

VOCABULARY, PREFILL, PROMPT, DECODE = 8192, 256, 16, 32


def pairs(width: int, layers: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """name -> (config of ours, config of the nearest class)."""
    heads = width // 64
    size = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
    }
    grouped = {**size, "num_key_value_heads": max(1, heads // 4)}
    llama = {**size, "model_type": "llama"}
    encoder = {key: value for key, value in size.items() if key != "num_key_value_heads"}
    return {
        "mobillama": ({**size, "model_type": "mobillama"}, llama),
        "minicpm": ({**size, "model_type": "minicpm"}, {**llama, "tie_word_embeddings": True}),
        "minicpm-moe": (
            {**size, "model_type": "minicpm", "num_experts": 8},
            {**size, "model_type": "mixtral", "num_local_experts": 8, "tie_word_embeddings": True},
        ),
        "phonelm": ({**size, "model_type": "phonelm"}, {**llama, "hidden_act": "relu", "tie_word_embeddings": True}),
        "teleflm": ({**size, "model_type": "teleflm"}, llama),
        "phi3small": (
            {**grouped, "model_type": "phi3small", "ff_intermediate_size": 3 * width},
            {**grouped, "model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ),
        "slimlm": (
            {"model_type": "slimlm", **encoder},
            {
                "model_type": "gpt2",
                "n_embd": width,
                "n_inner": 3 * width,
                "n_layer": layers,
                "n_head": heads,
                "n_positions": 1024,
                "vocab_size": VOCABULARY,
            },
        ),
        "super-tiny-lm": (
            {**grouped, "model_type": "super-tiny-lm", "head_dim": 64, "ffn_type": "swiglu"},
            {**grouped, "model_type": "llama", "tie_word_embeddings": True},
        ),
        "bebeshka": (
            {**encoder, "model_type": "bebeshka"},
            {**encoder, "model_type": "roberta", "hidden_act": "gelu_new"},
        ),
    }


def built(config: dict[str, Any]) -> Model:
    """A model of random weights."""
    family, task = TransformersText(), "masked-lm" if config["model_type"] in ("bebeshka", "roberta") else "causal-lm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = family.build({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **config}, task)
    return Model(
        module,
        family,
        ModelSpec(config["model_type"], "transformers", "text", task, plugin="zoo_slm", config=config),
        origin="random",
    )


def seconds(model: Model) -> dict[str, float]:
    """One measurement: tokens a second."""
    ids = torch.randint(3, VOCABULARY, (1, PREFILL), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    with torch.inference_mode():
        model.module(input_ids=ids)
    found = {"prefill": PREFILL / (time.perf_counter() - start)}
    if model.spec.task == "causal-lm":
        tokens = next_tokens(model, ids[0, :PROMPT].tolist(), DECODE + 1)
        next(tokens)
        start = time.perf_counter()
        found["decode"] = sum(1 for _ in tokens) / (time.perf_counter() - start)
    return found


def compare(ours: dict[str, Any], theirs: dict[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of both, and of the ratios of neighbouring measurements."""
    models = {"zoo": built(ours), "native": built(theirs)}
    runs = [{name: seconds(model) for name, model in models.items()} for _ in range(repeats + 1)][1:]
    return {
        what: {name: statistics.median(run[name][what] for run in runs) for name in models}
        | {"ratio": statistics.median(run["zoo"][what] / run["native"][what] for run in runs)}
        for what in runs[0]["zoo"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chosen = {
        name: pair
        for name, pair in pairs(args.width, args.layers).items()
        if not args.only or name in args.only.split(",")
    }
    found = {}
    for name, (ours, theirs) in chosen.items():
        found[name] = compare(ours, theirs, args.repeats)
        for what, row in found[name].items():
            print(
                f"{name:14} {what:8} {row['zoo']:8.1f} tokens/s   {theirs['model_type']:8} {row['native']:8.1f}   ratio {row['ratio']:.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
